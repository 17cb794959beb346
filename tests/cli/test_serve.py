"""serve from the command line; what it serves is tested in tests/deploy/gateway."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tersor.deploy.running.opening import ENGINES

from .conftest import Run


def test_a_key_is_made_and_only_its_hash_goes_into_the_deployment(run: Run) -> None:
    outcome = run("serve", "--make-key", "alice")
    secret = outcome.out.splitlines()[0].split()[1]
    assert len(secret) >= 40
    assert f"{{name: alice, sha256: {hashlib.sha256(secret.encode()).hexdigest()}, per_minute: 600}}" in outcome.out
    assert secret not in outcome.out.split("entry")[1]


def test_a_key_of_an_admin_says_so(run: Run) -> None:
    assert "per_minute: 600, admin: true}" in run("serve", "--make-key", "bob", "--admin").out


def test_a_deployment_that_is_wrong_ends_before_anything_starts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deploy.yaml").write_text("models: {a: {primary: b, variants: {}}}")
    outcome = run("serve", tmp_path / "deploy.yaml")
    assert outcome.code == 1
    assert "models.a.primary: no variant 'b'; there are none" in outcome.err
    assert run("serve").code == 2


def test_the_help_names_every_engine(run: Run) -> None:
    told = run("serve", "--help").out.replace(",", " ").replace(".\n", " ").replace(";", " ").split()
    assert set(ENGINES) <= set(told)
