"""Figures beside full precision: what they say, and how sure they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersor.deploy.gateway.recording.cells import Cell, figures, step_of
from tersor.deploy.gateway.reporting.figures import FIGURES, Compared, compared


def _timed(times: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Cell:
    cell = Cell(0, answered=len(times))
    for seconds in times:
        step = step_of(float(seconds))
        cell.whole[step] = cell.whole.get(step, 0) + 1
    return cell


def _of(rows: tuple[Compared, ...], name: str) -> Compared:
    return next(one for one in rows if one.figure.name == name)


def test_every_figure_of_the_record_is_a_row() -> None:
    names = {one.name for one in FIGURES}
    assert names == set(figures(Cell(0), 1.0)) - {"requests"}
    assert all(one.absent and one.title for one in FIGURES)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_the_range_of_a_quantile_holds_the_truth_as_often_as_it_says(share: float) -> None:
    rng, name = np.random.default_rng(3), f"latency_p{share * 100:.0f}_s"
    truth = float(np.quantile(rng.lognormal(-2, 0.5, 1_000_000), share))
    hits = 0
    for _ in range(300):
        found = _of(compared(_timed(rng.lognormal(-2, 0.5, 400)), None, 60.0), name).ours
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits >= 0.93 * 300


def test_the_range_of_a_difference_holds_the_truth_and_a_real_one_is_called_so() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        ours, full = _timed(rng.lognormal(-2, 0.4, 300)), _timed(rng.lognormal(-1.8, 0.4, 200))
        row = _of(compared(ours, full, 60.0), "latency_p50_s")
        assert row.difference is not None
        assert row.difference.low is not None
        assert row.difference.high is not None
        hits += row.difference.low <= math.exp(-2) - math.exp(-1.8) <= row.difference.high
    assert hits >= 0.93 * 200
    slow, fast = _timed(np.full(200, 0.2)), _timed(np.full(200, 0.1))
    readings = [_of(compared(*pair, 60.0), "latency_p95_s").reading for pair in ((slow, fast), (fast, slow))]
    assert readings == ["worse", "better"]
    assert _of(compared(fast, fast, 60.0), "latency_p95_s").reading == "not shown"


def test_few_answers_do_not_bound_a_far_quantile() -> None:
    found = _of(compared(_timed(np.full(20, 0.1)), None, 60.0), "latency_p99_s").ours
    assert found is not None
    assert found.high == math.inf


def test_shares_have_their_counts_and_a_direction() -> None:
    ours = Cell(0, answered=900, failed=50, fell_back=50, right=80, labelled=100, agreed=99, compared=100)
    full = Cell(0, answered=1000, failed=0, right=99, labelled=100)
    rows = compared(ours, full, 60.0)
    accuracy, errors, agreement = (_of(rows, name) for name in ("accuracy", "error_share", "agreement"))
    assert (accuracy.reading, errors.reading, agreement.reading) == ("worse", "worse", "")
    assert accuracy.ours is not None
    assert accuracy.difference is not None
    assert (accuracy.ours.value, accuracy.ours.of) == (0.8, 100)
    assert accuracy.difference.value == pytest.approx(-0.19)
    assert agreement.full is None  # full precision agrees with itself
    assert agreement.ours is not None
    assert agreement.ours.low is not None
    assert 0.94 < agreement.ours.low < 0.99


def test_what_was_never_counted_is_no_figure() -> None:
    assert all(one.ours is None and one.reading == "" for one in compared(Cell(0), Cell(0), 60.0))
