"""gate from the command line; its checks are tested in tests/deploy/gating."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.deploy.gating.record import GateRecord

from .conftest import Run


def test_an_artefact_that_is_not_there_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="counts what is served: pip install 'tersor[serve]'")
    outcome = run("gate", tmp_path / "no.gguf", "--against", model)
    assert outcome.code == 1
    assert "no.gguf: no such file" in outcome.err


def test_the_command_of_a_verdict_names_no_folder(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client", reason="counts what is served: pip install 'tersor[serve]'")
    told: list[str] = []

    def judge(path: Path, *, command: str, **_given: object) -> GateRecord:
        told.append(command)
        return GateRecord(path.name, "", {}, (), {}, "", "", command)

    monkeypatch.setattr("tersor.cli.deploy.gate.judged", judge)
    words = ("--data", tmp_path / "t.txt", f"--max-memory={2}GiB")
    for against, shown in ((model, "tiny.gguf"), ("org/name", "org/name")):
        run("gate", model, "--against", against, *words)
        assert told.pop() == f"tersor gate tiny.gguf --against {shown} --data t.txt --max-memory=2GiB"
