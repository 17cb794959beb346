"""report from the command line: a page, a table, and one JSON document."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.deploy.gateway.reporting.synthetic import deployed, served

from .conftest import Run


@pytest.fixture
def artefacts(run: Run, model: Path, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.gguf" for name in ("q8_0", "q4_0")]
    for path in paths:
        assert run("quantize", model, "-o", path, "-f", path.stem, "--search", "ggml").code == 0
    return paths


def test_a_page_is_written_and_summed_up(run: Run, artefacts: list[Path], tmp_path: Path) -> None:
    outcome = run("report", *artefacts, "-o", tmp_path / "r.html")
    assert outcome.code == 0
    assert "artefact" in outcome.out
    assert "q4_0" in outcome.out
    assert "quality has not been measured yet; --against MODEL does it first" in outcome.out
    assert f"wrote {tmp_path / 'r.html'}" in outcome.out
    assert "2 artefacts compared" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_json_tells_of_every_artefact(run: Run, artefacts: list[Path], tmp_path: Path) -> None:
    found = run("report", *artefacts, "-o", tmp_path / "r.html", "--json").document
    assert [row["label"] for row in found["artefacts"]] == ["q8_0", "q4_0"]
    assert found["artefacts"][0]["bytes"] == artefacts[0].stat().st_size
    assert found["report"] == "r.html"


def test_quantize_leaves_the_card_in_three_forms(artefacts: list[Path], tmp_path: Path) -> None:
    names = {path.name for path in tmp_path.iterdir()}
    assert {"q8_0.card.json", "q8_0.card.md", "q8_0.card.html"} <= names


def test_a_file_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    outcome = run("report", tmp_path / "none.gguf", "-o", tmp_path / "r.html")
    assert outcome.code == 1
    assert "none.gguf: no such file" in outcome.err
    assert not (tmp_path / "r.html").exists()


def test_a_deployment_is_reported_on_in_three_forms(run: Run, tmp_path: Path) -> None:
    place = served(tmp_path)
    printed = run("report", "--deployment", place)
    assert printed.code == 0
    assert printed.out.startswith("# Report on deploy.yaml\n")
    assert "latency, p99" in printed.out
    assert run("report", "--deployment", place, "--json").document["models"][0]["primary"] == "q8"
    for form, begin in (("html", "<!DOCTYPE html>"), ("md", "# Report"), ("json", "{")):
        outcome = run("report", "--deployment", place, "-o", tmp_path / f"r.{form}", "--days", 30)
        assert (outcome.code, f"wrote {tmp_path / f'r.{form}'}" in outcome.out) == (0, True)
        assert (tmp_path / f"r.{form}").read_text(encoding="utf-8").startswith(begin)


def test_what_means_nothing_for_a_deployment_is_refused(run: Run, tmp_path: Path) -> None:
    place = deployed(tmp_path)
    for more, reason in (
        (["--against", "x"], "--against means nothing for a deployment"),
        ([tmp_path / "a.gguf"], "artefacts means nothing for a deployment"),
        (["-o", tmp_path / "r.pdf"], "ends in .html, .md, .json"),
    ):
        outcome = run("report", "--deployment", place, *more)
        assert (outcome.code, reason in outcome.err) == (1, True), outcome.err
    assert "--days means nothing for artefacts" in run("report", tmp_path / "a.gguf", "--days", 3).err
    assert run("report").code == 2
    assert "no such deployment" in run("report", "--deployment", tmp_path / "none.yaml").err
