"""alerts from the command line: the list, and the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.deploy.alerting.files import monitoring_files
from tersor.deploy.alerting.rules import RULES, changed

from .conftest import Run

DEPLOYMENT = """
models: {a: {primary: q, variants: {q: {engine: llama.cpp, embedded: q4_k_m}}}}
monitor: {limits: {HighErrorShare: {limit: 0.2, for_s: 7}}}
"""


def test_every_alert_is_listed_with_its_limits(run: Run) -> None:
    outcome = run("alerts")
    assert outcome.code == 0
    assert [name for name in RULES if name not in outcome.out] == []
    rows = run("alerts", "--json").document["alerts"]
    assert [row["alert"] for row in rows] == list(RULES)
    assert (rows[2]["limit"], rows[2]["clear"], rows[2]["for_s"]) == (0.01, 0.005, 120)


def test_files_are_written_with_the_limits_of_a_deployment(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="reads deployments: pip install 'tersor[serve]'")
    (tmp_path / "deploy.yaml").write_text(DEPLOYMENT)
    given = ("--deployment", tmp_path / "deploy.yaml")
    assert run("alerts", "--json", *given).document["alerts"][2]["limit"] == 0.2
    folder = tmp_path / "new" / "monitoring"
    outcome = run("alerts", folder, *given)
    assert outcome.out.split() == [str(folder / name) for name in monitoring_files()]
    made = monitoring_files(changed({"HighErrorShare": {"limit": 0.2, "for_s": 7}}))
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    assert run("alerts", folder, "--json").document == {"files": [str(folder / name) for name in made]}
    assert {path.name: path.read_text() for path in folder.iterdir()} == monitoring_files()


def test_what_cannot_be_written_says_why_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="reads deployments: pip install 'tersor[serve]'")
    (tmp_path / "deploy.yaml").write_text(DEPLOYMENT.replace("HighErrorShare: {limit: 0.2", "SlowAnswers: {limit: 70"))
    outcome = run("alerts", tmp_path / "new", "--deployment", tmp_path / "deploy.yaml")
    assert outcome.code == 1
    assert "error: limits.SlowAnswers: Prometheus counts times up to 60 s, not 70" in outcome.err
    assert not (tmp_path / "new").exists()
    assert run("alerts", "--deployment", tmp_path / "none.yaml").code == 1
