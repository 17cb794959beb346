from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tersor.core.errors import FormatError
from tersor.evaluation.nets.running.choices import Choice, Choices, Tried, choices_path

HERE = Choice("a" * 64, "this machine", "onnxruntime", 2, {"spin": True}, 1, 128, 1.5, (Tried("x", 1, {}, None, "no"),))


def test_a_choice_holds_for_its_bytes_machine_and_shapes_alone() -> None:
    kept = Choices((HERE,))
    assert kept.find("a" * 64, "this machine", 1, 128) == HERE
    for other in (("b" * 64, "this machine", 1, 128), ("a" * 64, "that", 1, 128), ("a" * 64, "this machine", 2, 128)):
        assert kept.find(*other) is None
    assert kept.find("a" * 64, "this machine", 1, 64) is None


def test_a_new_choice_replaces_that_of_the_same_case_and_forgets_other_bytes() -> None:
    elsewhere, larger = replace(HERE, machine="that"), replace(HERE, batch=8)
    kept = Choices((HERE,)).with_choice(elsewhere).with_choice(larger)
    assert kept.choices == (HERE, elsewhere, larger)
    faster = replace(HERE, best_ms=1.0)
    assert kept.with_choice(faster).choices == (elsewhere, larger, faster)
    changed = replace(HERE, artefact_sha256="b" * 64)
    assert kept.with_choice(changed).choices == (changed,)


def test_what_is_written_is_read_again() -> None:
    kept = Choices((HERE,))
    assert Choices.from_json(kept.to_json(), place="kept") == kept


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "tersor.choices/9"}', '{"schema": "tersor.choices/1"}'])
def test_something_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(FormatError, match="kept"):
        Choices.from_json(text, place="kept")


def test_choices_lie_beside_the_artefact() -> None:
    assert choices_path(Path("a/b.onnx")) == Path("a/b.onnx.choices.json")
