"""Hidden states of the pass of gradients go where they fit, and what has no room is told before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tests.pipeline.planning.conftest import Case

from tersor.analyse.projections import held_bytes
from tersor.core.errors import MissingError
from tersor.decoder import Decoder
from tersor.pipeline.calibrated.memory import PROGRAM
from tersor.pipeline.planning import room
from tersor.pipeline.planning.analysing import analyse
from tersor.pipeline.planning.room import folder_of_states


def test_states_go_into_a_file_where_they_take_much_of_what_is_free(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, shape = Decoder(case.model), (1000, 4096)
    held, states = held_bytes(decoder, *shape, 4)
    monkeypatch.setattr(room, "available_bytes", lambda: PROGRAM + held + states)
    assert folder_of_states(decoder, shape, 4, None, tmp_path) == tmp_path
    assert folder_of_states(decoder, shape, 4, False, tmp_path) is None
    monkeypatch.setattr(room, "available_bytes", lambda: PROGRAM + held + 8 * states)
    assert folder_of_states(decoder, shape, 4, None, tmp_path) is None
    assert folder_of_states(decoder, shape, 4, True, tmp_path) == tmp_path
    monkeypatch.setattr(room, "available_bytes", lambda: None)
    assert folder_of_states(decoder, shape, 4, None, tmp_path) is None


def test_too_little_memory_is_told_before_the_survey(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda: PROGRAM)
    with pytest.raises(MissingError, match=r"the pass of gradients needs 6\d\d.* fewer --formats need less"):
        analyse(case.model, tmp_path / "new", case.study)
    assert not any((tmp_path / "new" / "candidates").glob("*.bin"))
