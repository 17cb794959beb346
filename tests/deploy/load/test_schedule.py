"""Schedules are pure functions: laws, and the statistics of Poisson's process."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.load.schedule import MOST_PER_SECOND, Arrivals, Step, arrival_times, steps_of

rates = st.floats(0.01, 500)
lengths = st.floats(0.001, 10)
kinds = st.sampled_from(("constant", "poisson"))


@given(rate=rates, seconds=lengths, kind=kinds, seed=st.integers(0, 1000))
def test_times_rise_inside_of_the_step_and_are_the_same_each_time(
    rate: float, seconds: float, kind: Arrivals, seed: int
) -> None:
    step = Step(rate, seconds, kind, seed)
    times = list(arrival_times(step))
    assert times == list(arrival_times(step))
    assert all(0 <= time < seconds for time in times)
    assert all(a < b for a, b in pairwise(times))


@given(rate=rates, seconds=lengths)
def test_constant_arrivals_are_as_many_as_asked_for_and_do_not_drift(rate: float, seconds: float) -> None:
    times = list(arrival_times(Step(rate, seconds)))
    assert abs(len(times) - rate * seconds) < 1 + 1e-6
    assert times == [index / rate for index in range(len(times))]


@given(rate=rates, seconds=lengths, kind=kinds)
def test_a_longer_step_begins_as_a_shorter_one(rate: float, seconds: float, kind: Arrivals) -> None:
    short = list(arrival_times(Step(rate, seconds, kind)))
    assert list(islice(arrival_times(Step(rate, 2 * seconds, kind)), len(short))) == short


@given(rate=st.floats(1, 100), kind=kinds)
def test_twice_the_rate_halves_every_time(rate: float, kind: Arrivals) -> None:
    slow, fast = Step(rate, 4, kind), Step(2 * rate, 2, kind)
    assert [time / 2 for time in arrival_times(slow)] == list(arrival_times(fast))


def test_random_gaps_are_exponential_and_differ_by_seed() -> None:
    times = np.array(list(arrival_times(Step(100, 1000, "poisson", seed=3))))
    gaps = np.diff(times) * 100
    assert len(times) == pytest.approx(100_000, rel=0.02)
    assert gaps.mean() == pytest.approx(1, rel=0.02)
    assert gaps.std() == pytest.approx(1, rel=0.03)
    assert np.exp(-1) == pytest.approx((gaps > 1).mean(), rel=0.02)
    counts = np.bincount(times.astype(int))  # in windows of a second: variance as large as the mean
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)
    assert times[:3].tolist() != list(islice(arrival_times(Step(100, 1000, "poisson", seed=4)), 3))


def test_rates_one_after_another_have_seeds_of_their_own() -> None:
    first, second = steps_of((50, 50), 5, "poisson", seed=1)
    assert list(arrival_times(first)) != list(arrival_times(second))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1), "a rate is a number of requests per second"),
        ((math.nan, 1), "a rate is a number"),
        ((2 * MOST_PER_SECOND, 1), "a rate is a number"),
        ((1, 0), "a step lasts up to"),
        ((1, math.inf), "a step lasts up to"),
        ((1, 1, "sometimes"), "arrivals are constant or poisson"),
        ((1, 1, "poisson", -1), "a seed is a whole number"),
    ],
)
def test_what_is_no_step_is_refused(values: tuple[float, float], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        Step(*values)


def test_no_rates_are_refused() -> None:
    with pytest.raises(SchemeError, match="no rate to send at"):
        steps_of((), 1)
