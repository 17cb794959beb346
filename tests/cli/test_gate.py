"""gate from the command line; its checks are tested in tests/deploy/gating."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run


def test_an_artefact_that_is_not_there_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="counts what is served: pip install 'tersor[serve]'")
    outcome = run("gate", tmp_path / "no.gguf", "--against", model)
    assert outcome.code == 1
    assert "no.gguf: no such file" in outcome.err
