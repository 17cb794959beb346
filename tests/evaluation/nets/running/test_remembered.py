"""A choice holds for its bytes, machine, shapes and releases; whatever else lies there changes nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.evaluation.nets.running.choices import SLOWER, Choice, Choices, Tried, choices_path
from tersor.evaluation.nets.running.race import Sizes
from tersor.evaluation.nets.running.remembered import best_of, fingerprint, releases, remembered, told
from tersor.files.hashing import sha256
from tersor.targets.processor import processor

LAYOUT, NO_LAYOUT = {"layout": True, "spin": True}, {"layout": False, "spin": True}


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"a net")
    return path


def choice(artefact: Path) -> Choice:
    tried = (
        Tried("onnxruntime", 2, NO_LAYOUT, 1.0),
        Tried("onnxruntime", 1, LAYOUT, 1.5, SLOWER),
        Tried("onnxruntime", 1, NO_LAYOUT, 1.2, "its results differ from the first's"),
        Tried("torch", 1, {"compile": True}, None, "needs g++"),
    )
    return Choice(
        sha256(artefact),
        fingerprint(processor()),
        "onnxruntime",
        2,
        NO_LAYOUT,
        1,
        128,
        1.0,
        tried,
        releases(("onnxruntime", "torch")),
        "2026-11-28T14:00:00Z",
    )


def keep(artefact: Path, *choices: Choice) -> None:
    choices_path(artefact).write_text(Choices(choices).to_json())


def test_what_was_chosen_for_these_very_bytes_here_is_remembered(artefact: Path) -> None:
    assert remembered(artefact) is None
    kept = choice(artefact)
    keep(artefact, kept)
    assert remembered(artefact) == kept
    assert remembered(artefact, Sizes(1, 128)) == kept
    assert remembered(artefact, Sizes(2, 128)) is None
    assert told(kept) == "onnxruntime, 2 threads, no layout, spin: as `tersor optimize` chose on 2026-11-28"


def test_of_several_shapes_the_smallest_is_taken_where_none_is_said(artefact: Path) -> None:
    small, large = choice(artefact), replace(choice(artefact), batch=8, threads=1)
    keep(artefact, large, small)
    assert remembered(artefact) == small
    assert remembered(artefact, Sizes(8)) == large


@pytest.mark.parametrize(
    "change",
    [
        {"artefact_sha256": "b" * 64},
        {"machine": "that"},
        {"versions": {"onnxruntime": "0.1"}},
        {"engine": "llama.cpp"},  # which has no such settings
        {"engine": "nothing"},
        {"settings": {"layout": True, "spin": True, "profile": True}},
        {"threads": 10**9},
        {"threads": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_hold_or_was_never_tried_is_not_remembered(artefact: Path, change: dict[str, object]) -> None:
    keep(artefact, replace(choice(artefact), **change))  # type: ignore[arg-type]  # of several types
    assert remembered(artefact) is None


@pytest.mark.parametrize("text", ["", "[" * 10_000, '{"schema": "tersor.choices/9"}', "\x00"])
def test_a_file_of_something_else_is_passed_over_with_a_warning(
    artefact: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    choices_path(artefact).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert remembered(artefact) is None
    assert "net.onnx.choices.json is passed over" in caplog.text


def test_the_best_way_of_one_engine_is_one_that_ran_and_agreed(artefact: Path) -> None:
    kept = choice(artefact)
    assert best_of(kept, "onnxruntime") == kept.tried[0]
    assert best_of(kept, "onnxruntime", 1) == kept.tried[1]
    assert best_of(kept, "onnxruntime", 4) is None
    assert best_of(kept, "torch") is None
    hostile = replace(kept, tried=(Tried("onnxruntime", 10**9, LAYOUT, 0.1),))
    assert best_of(hostile, "onnxruntime") is None
