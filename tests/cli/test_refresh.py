"""refresh from the command line; what it makes is tested in tests/deploy/gateway/sampled."""

from __future__ import annotations

from pathlib import Path

from tersor.deploy.gateway.recording.store import read_happenings

from .conftest import Run

YAML = "models: {net: {primary: a, variants: {a: {engine: onnxruntime, path: a.onnx}}}}\n"


def test_what_is_missing_is_said_and_written_into_the_record(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "deploy.yaml"
    assert run("refresh", place, "--model", "net").code == 1
    assert run("refresh", place).code == 2
    (tmp_path / "a.onnx").write_bytes(b"no net")
    place.write_text(YAML)
    outcome = run("refresh", place, "--model", "net", "--who", "ann")
    assert outcome.code == 1
    assert "give it a fallback" in outcome.err
    (row,) = read_happenings(tmp_path / "deploy.record.db")
    assert (row.what, row.model, row.details["who"]) == ("refresh stopped", "net", "ann")
    assert run("refresh", place, "--model", "other").code == 1
