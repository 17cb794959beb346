from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tersor.evaluation.nets.running.engines import Way, ways
from tersor.evaluation.nets.running.race import Entry, Sizes, likeness_db, race_ways


def entry(score: float, name: str = "onnxruntime", refusal: str = "") -> Entry:
    return Entry(Path("net.onnx"), Way(name, 1, {}), refusal, blocks=[] if refusal else [score])


def test_sides_are_loaded_once_timed_every_round_and_refusals_are_kept(convolution: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01nonsense")
    way = ways(("onnxruntime",), (1,), every_setting=False)[0]
    told: list[tuple[int, int]] = []
    found = race_ways(
        [(convolution, way), (broken, way), (convolution, way)],
        Sizes(),
        rounds=3,
        progress=lambda _, done, total: told.append((done, total)),
        sleep=lambda _: None,
    )
    assert [len(one.blocks) for one in found] == [3, 0, 3]
    assert "broken.onnx" in found[1].refusal
    assert found[1].score == float("inf")
    for one in (found[0], found[2]):
        assert len(one.seconds) % 3 == 0
        assert min(one.seconds) == min(one.blocks)
        assert one.output is not None
        assert one.inputs == {"x": [1, 3, 8, 8]}
    assert likeness_db(found[0].output, found[2].output) is None  # type: ignore[arg-type]  # both ran
    assert told[-1] == (12, 12)


def test_the_score_is_the_lower_quartile_of_the_shortest_runs() -> None:
    found = entry(1.0)
    found.blocks = [9.0, 1.0, 2.0, 3.0, 4.0]
    assert found.score == 2.0


def test_those_that_are_named_go_on_and_another_one_begins_each_round(convolution: Path) -> None:
    way = ways(("onnxruntime",), (1,), every_setting=False)[0]
    seen: list[list[int]] = []

    def goes_on(entries: Sequence[Entry]) -> Sequence[Entry]:
        seen.append([len(one.blocks) for one in entries])
        return entries[1:]

    told: list[str] = []
    found = race_ways(
        [(convolution, way)] * 3,
        Sizes(),
        rounds=2,
        most=9,
        goes_on=goes_on,
        progress=lambda what, done, total: told.append(f"{done}/{total}"),
        sleep=lambda _: None,
    )
    assert [len(one.blocks) for one in found] == [2, 3, 4]
    assert seen == [[2, 2, 2], [3, 3], [4]]
    assert told[-1] == "12/12"


def test_likeness_is_in_decibels() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert likeness_db(reference, reference) is None
    assert likeness_db(reference * np.float32(1.1), reference) == pytest.approx(20, abs=1e-4)
