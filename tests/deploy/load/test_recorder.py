"""The recorder against numpy: quantiles to 1 %, counts exactly, memory bounded."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tersor.core.errors import FormatError, SchemeError
from tersor.deploy.load.recorder import LONGEST_S, RELATIVE_ERROR, SHORTEST_S, DurationRecorder

durations = st.lists(st.floats(SHORTEST_S, 1e5), min_size=1, max_size=60)


def recorded(values: list[float]) -> DurationRecorder:
    recorder = DurationRecorder()
    for value in values:
        recorder.add(value)
    return recorder


@given(values=durations, q=st.floats(0, 1))
@example(values=[SHORTEST_S], q=0.5)
@example(values=[0.5, 1.0, math.nextafter(1.0, 0)], q=1.0)
def test_quantiles_are_those_of_numpy_within_one_percent(values: list[float], q: float) -> None:
    found, true = recorded(values).quantile(q), sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    assert abs(found - true) <= RELATIVE_ERROR * true * (1 + 1e-12)
    assert RELATIVE_ERROR <= 0.01


@pytest.mark.parametrize("seed", range(3))
def test_many_latencies_have_the_percentiles_of_numpy(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(-4, 1.5, 20_000)
    recorder = recorded(values.tolist())
    for q in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert recorder.quantile(q) == pytest.approx(np.quantile(values, q, method="inverted_cdf"), rel=0.01)
    assert recorder.total == pytest.approx(values.sum())
    assert (recorder.least, recorder.greatest) == (values.min(), values.max())


@given(values=durations)
def test_values_are_what_was_added(values: list[float]) -> None:
    np.testing.assert_allclose(recorded(values).values(1000), sorted(values), rtol=0.01)


@given(left=durations, right=durations)
def test_merging_is_adding_one_by_one(left: list[float], right: list[float]) -> None:
    merged, whole = recorded(left), recorded(left + right)
    merged.merge(recorded(right))
    assert merged.values(1000).tolist() == whole.values(1000).tolist()
    assert (merged.count, merged.least, merged.greatest) == (whole.count, whole.least, whole.greatest)
    assert merged.total == pytest.approx(whole.total)


def test_evenly_picked_values_keep_the_quantiles() -> None:
    recorder = recorded(np.random.default_rng(5).exponential(0.1, 30_000).tolist())
    picked = recorder.values(1000)
    assert len(picked) == 1000
    for q in (0.5, 0.9, 0.99):
        assert np.quantile(picked, q) == pytest.approx(recorder.quantile(q), rel=0.03)


def test_what_never_ended_is_infinite_and_what_took_no_time_is_below_a_microsecond() -> None:
    recorder = recorded([0.0, 1.0, math.inf, 2 * LONGEST_S])
    assert recorder.quantile(0) <= SHORTEST_S
    assert recorder.quantile(0.75) == recorder.quantile(1) == math.inf


def test_it_needs_no_more_memory_for_more_values() -> None:
    few, many = recorded([0.01]), recorded(np.random.default_rng(0).exponential(1, 10_000).tolist())
    assert sys.getsizeof(few._counts) == sys.getsizeof(many._counts) < 30_000


@pytest.mark.parametrize("value", [-1e-9, math.nan])
def test_what_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(FormatError, match="a duration is a number of seconds from 0 on"):
        DurationRecorder().add(value)


def test_there_is_no_quantile_of_nothing_and_none_beyond_one() -> None:
    with pytest.raises(FormatError, match="no durations were counted"):
        DurationRecorder().quantile(0.5)
    with pytest.raises(SchemeError, match="a quantile lies between 0 and 1"):
        recorded([1.0]).quantile(1.5)
    assert DurationRecorder().values(10).tolist() == []
