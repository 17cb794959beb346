"""Counting in bounded memory: minutes, days, quantiles, samples."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tersor.deploy.gateway.recording.cells import Cell, figures, less_noise, quantile, step_of
from tersor.deploy.gateway.recording.features import of_answer, of_request, of_text
from tersor.deploy.gateway.recording.recorder import DAYS, MOST_RECORDS, Recorder
from tersor.deploy.gateway.recording.samples import MOST, Reservoir
from tersor.deploy.gateway.sampled.feedback import Feedback
from tersor.deploy.running.supervised import RequestError


class Clock:
    """Time that a test sets, and how often it was asked for."""

    def __init__(self) -> None:
        self.now, self.asked = 1_800_000_000.0, 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now


def test_quantiles_are_within_a_step_of_those_of_all_numbers() -> None:
    times = np.random.default_rng(0).lognormal(-3, 1.5, 20_000)
    steps: dict[int, int] = {}
    for seconds in times:
        steps[step_of(seconds)] = steps.get(step_of(seconds), 0) + 1
    for share in (0.5, 0.95, 0.99):
        assert quantile(steps, share) == pytest.approx(np.quantile(times, share, method="inverted_cdf"), rel=0.026)


def test_minutes_turn_into_days_and_nothing_is_counted_twice_or_kept_for_ever() -> None:
    clock = Clock()
    recorder = Recorder(clock)
    for _ in range(3 * 24 * 60):
        recorder.answered("m", "q", 0.01, 0.02, 5)
        clock.now += 60
    record = recorder.records["m", "q"]
    assert len(record.minutes) == 60
    assert sum(day.answered for day in record.days) + record.now.answered == 3 * 24 * 60
    assert record.since(clock.now - 301).answered == 5
    began = record.minutes[-3].at
    assert [record.since(moment).answered for moment in (began, began + 1)] == [4, 3]  # the minutes from there on
    clock.now += 90 * 86_400 * 60
    for _ in range(100):
        recorder.failed("m", "q")
        clock.now += 86_400
    assert len(record.days) == DAYS
    for number in range(2 * MOST_RECORDS):
        recorder.failed("m", str(number))
    assert len(recorder.records) <= MOST_RECORDS


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    clock = Clock()
    recorder = Recorder(clock)
    recorder.answered("m", "q", 0.1, 0.1)
    clock.now -= 7200
    recorder.answered("m", "q", 0.1, 0.1)
    record = recorder.records["m", "q"]
    clock.now += 60
    recorder.turn([("m", "q")])
    assert sum(day.answered for day in record.days) == 2


def test_a_clock_that_is_set_back_leaves_windows_as_long_as_they_are() -> None:
    clock = Clock()
    recorder = Recorder(clock)

    def minute(failed: int) -> tuple[int, int]:
        for number in range(60):
            recorder.failed("m", "q") if number < failed else recorder.answered("m", "q", 0.1, 0.1)
            clock.now += 1
        window = recorder.records["m", "q"].since(clock.now - 300)
        return window.failed, window.answered

    assert [minute(6) for _ in range(10)][-1] == (30, 270)
    clock.now -= 3 * 3600
    after = [minute(0) for _ in range(200)]  # past the time that it was set back from
    assert {failed for failed, _ in after} == {0}
    assert {answered for _, answered in after[5:]} == {300}
    assert [minute(60) for _ in range(5)][-1] == (300, 0)
    clock.now -= 1  # as clocks are corrected all day: nothing is dropped
    assert minute(60)[0] >= 300


def test_days_of_a_clock_that_was_far_ahead_take_nothing_in() -> None:
    clock = Clock()
    recorder = Recorder(clock)
    clock.now += 20 * 86_400
    recorder.failed("m", "q")
    clock.now -= 20 * 86_400
    for _ in range(3):
        recorder.answered("m", "q", 0.1, 0.1)
        clock.now += 86_400
    recorder.turn([("m", "q")])
    days = recorder.records["m", "q"].days
    assert [(day.answered, day.failed) for day in days] == [(1, 0)] * 3 + [(0, 1)]
    assert [day.at for day in days] == sorted(day.at for day in days)


def test_figures_are_shares_of_what_was_asked() -> None:
    cell = Cell(0, answered=90, failed=4, fell_back=6, agreed=19, compared=20, right=3, labelled=4, tokens=600)
    found = figures(cell, 60)
    assert (found["error_share"], found["fallback_share"], found["agreement"], found["accuracy"]) == (
        0.04, 0.06, 0.95, 0.75,
    )  # fmt: skip
    assert found["tokens_per_s"] == 10
    assert figures(Cell(0), 60)["error_share"] is None
    assert Cell.of(7, cell.to_object()).to_object() == cell.to_object()


def test_noise_is_taken_off_agreement_and_distance_and_little_of_it_excuses_little() -> None:
    recorder = Recorder(Clock())
    for number in range(100):
        recorder.compared("m", "q", agreed=float(number >= 10), apart=0.5)
        recorder.floored("m", "q", agreed=float(number >= 8), apart=0.2)
    cell = recorder.records["m", "q"].now
    found = figures(Cell.of(0, cell.to_object()), 60)
    assert found["agreement_floor"] == 0.92
    assert found["apart_floor"] == pytest.approx(0.2)
    assert 0.93 < (found["agreement"] or 0) < 0.98  # 0.90 and what of 0.08 is sure to be noise
    assert found["apart"] == pytest.approx(0.3)
    assert less_noise(0.5, 0.0, 1) == pytest.approx(0.5, abs=0.3)
    assert less_noise(0.5, 5.0, 5) == 0.5
    assert less_noise(None, 1.0, 1) is None
    assert less_noise(0.99, 0.0, 100) == 1.0


@pytest.mark.parametrize(
    "bad",
    [
        {"apart": -1.0},
        {"agreed": float("nan")},
        {"failed": -1},
        {"whole": {"9999": 1}},
        {"whole": {"x": 1}},
        {"answered": "many"},
    ],
)
def test_a_cell_that_was_damaged_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Cell.of(0, bad)


def test_a_reservoir_is_a_fair_sample_of_bounded_size() -> None:
    random.seed(0)
    reservoir = Reservoir()
    for number in range(20 * MOST):
        place = reservoir.place()
        if place is not None:
            reservoir.put(place, {"at": float(number)})
    assert len(reservoir.kept) == MOST
    assert np.mean([one["at"] for one in reservoir.kept]) == pytest.approx(10 * MOST, rel=0.1)


def test_features_tell_of_a_text_and_never_hold_it() -> None:
    found = of_request({"body": {"messages": [{"role": "user", "content": "abc 12!"}]}}, b"")
    assert found == of_text("abc 12!")
    assert found["characters"] == 7
    assert found["digits"] == pytest.approx(2 / 7)
    assert of_text("\ud800é")["other bytes"] > 0
    assert of_request({"body": {"prompt": [1, 2, 3]}}, b"") == {"tokens": 3}


def test_features_of_tensors_are_those_of_their_first_row() -> None:
    rows = np.array([[1.0, np.nan, 3.0], [4, 5, 6]], np.float32)
    wide = np.arange(200, dtype=np.int64).reshape(2, 100)
    inputs = [{"name": "x", "dtype": "<f4", "shape": [2, 3]}, {"name": "w", "dtype": "<i8", "shape": [2, 100]}]
    found = of_request({"inputs": inputs}, rows.tobytes() + wide.tobytes())
    assert (found["x[0]"], found["x[2]"], found["w mean"], found["w largest"]) == (1.0, 3.0, 49.5, 99.0)
    assert np.isnan(found["x[1]"])
    part = {"outputs": [{"name": "y", "dtype": "<f4", "shape": [2, 3]}]}
    assert of_answer([(part, rows.tobytes())], 0)["y[2]"] == 3.0


def test_feedback_judges_an_answer_once_and_forgets_the_oldest() -> None:
    recorder = Recorder(Clock())
    feedback = Feedback(recorder, least=2)
    for number, variant in (("a", "p"), ("b", "q"), ("c", "p"), ("d", "q"), ("e", "p")):
        feedback.remember(number, "m", variant)
    assert feedback.take({"id": "d", "right": True}) == {"model": "m", "variant": "q"}
    for gone in ("a", "b", "d", "zzz"):
        with pytest.raises(RequestError, match="no such answer"):
            feedback.take({"id": gone, "right": True})
    oddities: tuple[object, ...] = (
        {},
        [],
        None,
        {"id": "c"},
        {"id": "c", "right": 1},
        {"id": "x" * 999, "right": True},
    )
    for odd in oddities:
        with pytest.raises(RequestError):
            feedback.take(odd)
    cell = recorder.records["m", "q"].now
    assert (cell.labelled, cell.right) == (1, 1)
    assert feedback.take({"id": "e", "right": False}) == {"model": "m", "variant": "p"}
