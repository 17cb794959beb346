from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.engines.activations import Activations


def answer(**captures: object) -> dict[str, object]:
    return {"captures": captures, "input_of": {"w": "x"}, "choice_of": {}}


def test_runs_are_joined_in_order(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    np.arange(12, dtype=np.float32).tofile(path)
    made = Activations.from_answer(path, answer(x={"columns": 2, "groups": 1, "segments": [[16, 2], [0, 1]]}))
    assert made.read("x").tolist() == [[4, 5], [6, 7], [0, 1]]
    assert "x" in made
    assert "y" not in made
    with pytest.raises(EngineError, match="no activation 'y'"):
        made.read("y")


@pytest.mark.parametrize("segment", [[0, 7], [-4, 1], [40, 2], [0, -1]])
def test_places_beyond_the_file_are_refused(tmp_path: Path, segment: list[int]) -> None:
    path = tmp_path / "spool"
    np.arange(12, dtype=np.float32).tofile(path)
    with pytest.raises(EngineError, match="48 bytes of activations, which do not hold 'x'"):
        Activations.from_answer(path, answer(x={"columns": 2, "groups": 1, "segments": [segment]}))


def test_an_expert_sees_the_tokens_that_were_sent_to_it(tmp_path: Path) -> None:
    """Three tokens, two experts each; the input is the token's own, or one for each of the two."""
    path = tmp_path / "spool"
    tokens = np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    slots = np.array([[10, 11, 20, 21], [30, 31, 40, 41], [50, 51, 60, 61]], np.float32)
    choices = np.array([[0, 2], [1, 0], [2, 1]], np.float32)
    path.write_bytes(tokens.tobytes() + slots.tobytes() + choices.tobytes())
    captures = {
        "t": {"columns": 2, "groups": 1, "segments": [[0, 3]]},
        "s": {"columns": 4, "groups": 2, "segments": [[24, 3]]},
        "c": {"columns": 2, "groups": 1, "segments": [[72, 3]]},
    }
    made = Activations.from_answer(
        path, {"captures": captures, "input_of": {"up": "t", "down": "s"}, "choice_of": {"up": "c", "down": "c"}}
    )
    up, down = made.input_of("up", 2), made.input_of("down", 0)
    assert up is not None
    assert up.tolist() == [[1, 1], [3, 3]]
    assert down is not None
    assert down.tolist() == [[10, 11], [40, 41]]
    assert made.input_of("gate") is None
