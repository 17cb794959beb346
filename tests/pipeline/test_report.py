"""Reports of files: Cards, artefacts with and without one, and what must be refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tersor.core.card import Card, card_path
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.evaluation import HELD_OUT, Evaluation, Metric
from tersor.pipeline.language.text import read_text
from tersor.pipeline.quantize import quantize
from tersor.pipeline.report import report
from tersor.pipeline.steps.cards import add, load_card, read_card

from .conftest import MakeModel

FORMATS = ("q8_0", "q4_0")


@pytest.fixture
def artefacts(make_model: MakeModel, tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{name}.gguf" for name in FORMATS]
    for name, path in zip(FORMATS, made, strict=True):
        quantize(make_model(), name, path, command=f"tersor quantize m -o {path.name} --format {name}")
    return made


def evaluation(path: Path, divergence: float, text: str = "text.txt", task: str = "language") -> Evaluation:
    metrics = (Metric("kl_mean", divergence, "nats", divergence / 2, divergence * 2, 9),)
    return Evaluation(task, path.name, "", "m", text, text, {}, {}, metrics)


def test_one_artefact_makes_the_page_of_its_card(artefacts: list[Path], tmp_path: Path) -> None:
    made = report(artefacts[0], tmp_path / "r.html")
    assert made.cards == (read_card(artefacts[0]),)
    assert made.path.read_bytes() == card_path(artefacts[0], "html").read_bytes()


def test_several_are_compared_and_told_in_plain_values(artefacts: list[Path], tmp_path: Path) -> None:
    for path, divergence in zip(artefacts, (0.001, 0.1), strict=True):
        add(path, evaluation=evaluation(path, divergence))
    made = report([artefacts[0], card_path(artefacts[1], "json")], tmp_path / "r.html")
    document = made.to_object()
    assert document["report"] == "r.html"
    assert document["evaluated"] == []
    rows = document["artefacts"]
    assert isinstance(rows, list)
    assert [(row["label"], row["metrics"]["kl_mean"]["value"]) for row in rows] == [("q8_0", 0.001), ("q4_0", 0.1)]
    assert "Size against KL divergence" in made.path.read_text(encoding="utf-8")


def test_a_file_without_a_card_tells_what_it_is(artefacts: list[Path], tmp_path: Path) -> None:
    known = read_card(artefacts[1])
    assert known is not None
    for suffix in ("json", "md", "html"):
        card_path(artefacts[1], suffix).unlink()
    found = report(artefacts[1], tmp_path / "r.html").cards[0]
    assert [(t.name, t.shape, t.format, t.nbytes) for t in found.plan.tensors] == [
        (t.name, t.shape, t.format, t.nbytes) for t in known.plan.tensors
    ]
    assert found.artefacts == known.artefacts
    assert found.plan.recipe.format == "q4_0"
    assert "No Card lies beside this file" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert Card.from_json(found.to_json()) == found


def test_what_does_not_fit_together_is_refused(artefacts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="a report needs at least one artefact or Card"):
        report([], tmp_path / "r.html")
    with pytest.raises(MissingError, match=r"none\.gguf: no such file"):
        report(tmp_path / "none.gguf", tmp_path / "r.html")
    with pytest.raises(MissingError, match=r"nowhere: no such folder"):
        report(artefacts, tmp_path / "nowhere" / "r.html")
    with pytest.raises(MissingError, match=r"none\.txt: no such file"):
        report(artefacts, tmp_path / "r.html", data=tmp_path / "none.txt")
    with artefacts[0].open("r+b") as file:  # as long as it was
        file.seek(-1, 2)
        file.write(b"x")
    for given in (artefacts[0], card_path(artefacts[0], "json")):
        with pytest.raises(FormatError, match=r"q8_0\.gguf: its SHA-256 is .* the Card is of another file"):
            report(given, tmp_path / "r.html")
    with artefacts[0].open("ab") as file:
        file.write(b"more")
    with pytest.raises(FormatError, match=r"q8_0\.gguf: it has .* the Card is of another file"):
        report(artefacts, tmp_path / "r.html")
    card = load_card(card_path(artefacts[1], "json"))
    artefacts[1].unlink()
    with pytest.raises(MissingError, match=r"q4_0\.gguf: not beside its Card, so it cannot be evaluated"):
        report(card_path(artefacts[1], "json"), tmp_path / "r.html", against="m")
    assert report(card_path(artefacts[1], "json"), tmp_path / "r.html").cards == (replace(card),)
    assert sorted(path.name for path in tmp_path.glob("r.html")) == ["r.html"]


def test_evaluations_that_are_there_are_not_made_again(artefacts: list[Path], tmp_path: Path) -> None:
    for path in artefacts:
        add(path, evaluation=evaluation(path, 0.1))
    made = report(artefacts, tmp_path / "r.html", against=tmp_path / "a model that is not there")
    assert made.evaluated == ()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The artefacts that a report evaluates, on the built-in text, without running them."""
    asked: list[str] = []

    def evaluated(path: Path, **_given: object) -> Evaluation:
        asked.append(path.name)
        found = replace(evaluation(path, 0.5), data="held_out.txt", data_sha256=read_text(None).sha256)
        add(path, evaluation=found)
        return found

    monkeypatch.setattr("tersor.pipeline.report.evaluate", evaluated)
    return asked


def test_artefacts_of_different_texts_are_evaluated_on_one(
    artefacts: list[Path], tmp_path: Path, fresh: list[str]
) -> None:
    for path, text in zip(artefacts, ("a.txt", "b.txt"), strict=True):
        add(path, evaluation=evaluation(path, 0.1, text))
    without = report(artefacts, tmp_path / "r.html").to_object()
    assert [row["metrics"] for row in without["artefacts"]] == [{}, {}]  # type: ignore[attr-defined]
    assert without["notes"] == report(artefacts, tmp_path / "r.html").notes
    assert "q8_0 on a.txt; q4_0 on b.txt" in str(without["notes"])
    made = report(artefacts, tmp_path / "r.html", against="m")
    assert (fresh, made.notes) == (["q8_0.gguf", "q4_0.gguf"], [])
    assert report(artefacts, tmp_path / "r.html", against="m").evaluated == ()


def test_the_gain_that_quantizing_measured_is_no_evaluation(
    artefacts: list[Path], tmp_path: Path, fresh: list[str]
) -> None:
    for path in artefacts:
        add(path, evaluation=evaluation(path, 0.1, "calibration.txt", HELD_OUT))
    rows = report(artefacts, tmp_path / "r.html").to_object()["artefacts"]
    assert [row["metrics"] for row in rows] == [{}, {}]  # type: ignore[attr-defined]
    report(artefacts, tmp_path / "r.html", against="m")
    assert fresh == ["q8_0.gguf", "q4_0.gguf"]
