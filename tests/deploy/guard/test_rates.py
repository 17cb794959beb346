"""Windows against lists that remember everything."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.guard import CountWindow, Rate, SteadyClock, TimeWindow


@given(st.integers(1, 9), st.lists(st.booleans(), max_size=40))
def test_a_count_window_holds_the_last_outcomes(size: int, outcomes: list[bool]) -> None:
    window = CountWindow(size)
    for outcome in outcomes:
        window.add(outcome)
    last = outcomes[-size:]
    assert window.rate == Rate(sum(last), len(last))


@given(st.lists(st.tuples(st.floats(0, 8), st.booleans()), max_size=60))
def test_a_time_window_forgets_after_its_span_and_not_much_before(steps: list[tuple[float, bool]]) -> None:
    window, now, seen = TimeWindow(10.0, slots=10), 1000.0, []
    for step, outcome in steps:
        now += step
        window.add(now, outcome)
        seen.append((now, outcome))
        rate = window.rate(now)
        # Ages are measured from the first call, in floating point: half a millionth of a slot either way.
        sure = [happened for at, happened in seen if now - at < 9.0 - 1e-6]
        possible = [happened for at, happened in seen if now - at <= 10.0 + 1e-6]
        assert len(sure) <= rate.total <= len(possible)
        assert sum(sure) <= rate.events <= sum(possible)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30))
def test_a_steady_clock_never_goes_back_and_counts_every_step_forward(times: list[float]) -> None:
    clock = SteadyClock()
    shown = [clock.at(now) for now in times]
    assert shown == sorted(shown)
    forward = sum(max(0.0, later - before) for before, later in pairwise(times))
    assert shown[-1] == pytest.approx(forward)


def test_a_clock_that_jumps_back_freezes_no_window() -> None:
    window = TimeWindow(10.0)
    window.add(1e6, True)
    window.add(5.0, True)
    assert window.rate(6.0) == Rate(2, 2)
    assert window.rate(20.0) == Rate(0, 0)


def test_a_clock_that_jumps_forward_empties_the_window_at_once() -> None:
    window = TimeWindow(10.0)
    window.add(0.0, True)
    assert window.rate(1e12) == Rate(0, 0)
    window.add(1e12, False)
    assert window.rate(1e12) == Rate(0, 1)


@pytest.mark.parametrize("pause", range(4, 9))
def test_a_pause_as_long_as_the_span_leaves_nothing(pause: int) -> None:
    window = TimeWindow(4.0, slots=4)
    for now in range(4):
        window.add(float(now), True)
    assert window.rate(3.0 + pause) == Rate(0, 0)


def test_memory_does_not_grow_with_traffic() -> None:
    window, counts = TimeWindow(10.0, slots=4), CountWindow(4)
    for step in range(1000):
        window.add(step / 100, True)
        counts.add(True)
    assert window.rate(9.99).total <= 1000
    assert len(window._totals) == len(window._events) == len(counts._ring) == 4


def test_a_cleared_window_is_empty_and_goes_on() -> None:
    window = TimeWindow(10.0)
    window.add(3.0, True)
    window.clear()
    window.add(4.0, False)
    assert window.rate(4.0) == Rate(0, 1)


@pytest.mark.parametrize(("events", "total"), [(1, 1), (3, 10), (90, 200), (200, 200)])
def test_the_lower_end_leaves_five_percent_above_it(events: int, total: int) -> None:
    """Wilson's end is the share p at which the count lies z standard deviations above its mean."""
    low = Rate(events, total).at_least(0.95)
    z = (events / total - low) / math.sqrt(low * (1 - low) / total)
    assert z == pytest.approx(1.6449, abs=1e-3)
    assert Rate(events, total).at_least(0.99) < low < events / total


@given(st.lists(st.tuples(st.floats(0, 8), st.lists(st.none() | st.booleans(), min_size=3, max_size=3)), max_size=40))
def test_kinds_side_by_side_are_windows_of_their_own(steps: list[tuple[float, list[bool | None]]]) -> None:
    together, alone, now = TimeWindow(10.0, kinds=3), [TimeWindow(10.0) for _ in range(3)], 50.0
    for step, outcomes in steps:
        now += step
        together.add(now, *outcomes)
        for window, outcome in zip(alone, outcomes, strict=True):
            window.rate(now)  # a clock that all of them see
            if outcome is not None:
                window.add(now, outcome)
        assert together.rates(now) == tuple(window.rate(now) for window in alone)


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(SchemeError, match="1 outcome or more, got 0"):
        CountWindow(0)
    for span, slots in ((0.0, 5), (math.inf, 5), (math.nan, 5), (1.0, 1)):
        with pytest.raises(SchemeError, match="positive seconds in 2 slots"):
            TimeWindow(span, slots=slots)
    with pytest.raises(SchemeError, match="0 kinds"):
        TimeWindow(1.0, kinds=0)
    for now in (math.nan, math.inf, -math.inf):
        with pytest.raises(SchemeError, match="finite seconds"):
            SteadyClock().at(now)
