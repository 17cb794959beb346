"""advise from the command line; what it finds is tested in tests/pipeline/advising."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.pipeline.nets.conftest import folder, graph, net

from tersor import reference_model
from tersor.graph.net import Net

from .conftest import Run

__all__ = ["folder", "graph", "net"]
WORDS = ("advise", "net.onnx", "--calibration", "calibration.npz", "--data", "test.npz", "--threads", "1")


def test_it_tells_writes_and_exits(folder: Path, graph: Net, run: Run) -> None:  # a fixture
    graph.save(folder / "net.onnx")
    done = run(*WORDS, "--max-drop", "5", "--max-size", "1MiB", "-o", "out.onnx", "--report", "a.html")
    assert done.code == 0, done.err
    assert "f16 weights: met" in done.err
    assert "passed over  int8 weights" in done.out
    assert "wrote out.onnx" in done.out
    assert (folder / "out.onnx").is_file()
    assert "What to do now" in (folder / "a.html").read_text()
    missed = run(*WORDS, "--max-drop", "100", "--max-size", "1", "--json")
    assert (missed.code, missed.document["schema"], missed.document["is_met"]) == (1, "tersor.advice/1", False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-kl", "1"), "give --max-drop"),
        (("--max-size", "much"), "is not a size"),
        (("--min-speedup", "0"), "least speed"),
        (("--target", "tpu"), "the target is"),
        (("--target", "gpu"), "the ladder of nets is one for processors"),
        (("--text", "a.txt"), "--text means nothing for a net"),
        (("--epochs", "3"), "give both"),
        (("--resume",), "say which one to go on with"),
    ],
)
def test_goals_that_do_not_fit_are_refused(
    words: tuple[str, ...],
    told: str,
    folder: Path,
    graph: Net,
    run: Run,  # fixtures
) -> None:
    graph.save(folder / "net.onnx")
    outcome = run(*WORDS, *words)
    assert outcome.code == 1
    assert told in outcome.err
    assert "--calibration" in run("advise", "net.onnx").err


@pytest.mark.parametrize(("report", "told"), [("a.txt", "a report ends in .html"), ("no/a.html", "no: no such folder")])
def test_a_report_that_cannot_be_written_is_refused_before_the_walk(
    report: str,
    told: str,
    folder: Path,
    graph: Net,
    run: Run,  # fixtures
) -> None:
    graph.save(folder / "net.onnx")
    outcome = run(*WORDS, "--max-drop", "5", "--max-size", "1MiB", "-o", "out.onnx", "--report", report)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")  # no rung was tried
    assert told in outcome.err
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data", "test.npz"), "--data means nothing for a language model"),
        (("--mean", "1,1,1"), "--mean means nothing for a language model"),
        (("--target", "gpu", "--train", "more.txt"), "--train means nothing for --target gpu"),
    ],
)
def test_what_a_language_model_does_not_look_at_is_refused(words: tuple[str, ...], told: str, run: Run) -> None:
    outcome = run("advise", str(reference_model.PATH), *words)
    assert outcome.code == 1
    assert told in outcome.err
