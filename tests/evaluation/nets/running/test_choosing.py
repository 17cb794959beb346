"""The fastest way is found; what refuses, differs or is far behind stands after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.evaluation.nets.running.choosing import best_way, until_clear
from tersor.evaluation.nets.running.engines import Way, ways
from tersor.evaluation.nets.running.race import Entry, Sizes


def same(entry: Entry, other: Entry) -> bool:
    return entry.output is not None and other.output is not None and np.allclose(entry.output, other.output, atol=1e-4)


def test_more_ways_than_are_held_at_once_are_all_placed(convolution: Path) -> None:
    every = ways(("onnxruntime",), (1, 2, 3, 4), every_setting=True)
    absent = Way("onnxruntime", 1000, {"layout": True, "spin": True, "pinning": True})
    placed = best_way(convolution, [absent, *every], Sizes(), rounds=2, agrees=same)
    assert {str(one.entry.way) for one in placed} == {str(way) for way in (absent, *every)}
    ratios = [one.ratio for one in placed if one.ratio is not None]
    assert ratios[0] == 1.0
    assert len(ratios) == len(every)
    assert placed[-1].ratio is None
    assert "1000 threads cannot be pinned" in placed[-1].entry.refusal
    assert len(placed[0].entry.blocks) >= 2


def test_what_computes_something_else_is_never_first(convolution: Path) -> None:
    every = ways(("onnxruntime",), (1, 2), every_setting=True)
    for strange in every[1:]:

        def agrees(entry: Entry, _first: Entry, strange: Way = strange) -> bool:
            return entry.way != strange

        placed = best_way(convolution, every, Sizes(), rounds=1, agrees=agrees)
        assert placed[0].agrees
        assert [one.agrees for one in placed if one.entry.way == strange] == [False]


def test_nothing_to_run_it_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01nonsense")
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        best_way(broken, ways(("onnxruntime",), (1,), every_setting=True), Sizes(), rounds=1, agrees=same)


def test_a_race_that_stays_open_ends_when_its_time_is_up() -> None:
    way = Way("onnxruntime", 1, {})
    entries: Sequence[Entry] = [Entry(Path("a"), way, blocks=[1.0]), Entry(Path("a"), way, blocks=[1.0])]
    goes_on = until_clear(60.0)
    assert goes_on(entries) == entries
    assert until_clear(-1.0)(entries) == ()
