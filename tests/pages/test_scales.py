"""Scales hold every value, and their ticks are round and rising."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.pages.scales import MAX_TICKS, finite, linear_scale, log_scale

VALUES = st.lists(st.floats() | st.none(), max_size=8)


@pytest.mark.parametrize("make", [linear_scale, log_scale])
@given(VALUES)
def test_every_value_has_a_place_within_the_axis(make: type, values: list[float | None]) -> None:
    scale = make(values, 10.0, 110.0)
    assert scale.low < scale.high
    assert all(low < high for low, high in pairwise(scale.ticks))
    assert 2 <= len(scale.ticks) <= MAX_TICKS
    for value in finite(values):
        assert 10.0 <= scale(value) <= 110.0
        if not scale.is_log or value > 1e-199:
            assert scale.low <= value * (1 + 1e-3 * math.copysign(1, value)) + 1e-9 * scale.high or value <= scale.high


def test_the_ends_of_the_axis_are_the_outermost_ticks() -> None:
    scale = linear_scale([3.2, 17.9], 0.0, 100.0)
    assert (scale(scale.ticks[0]), scale(scale.ticks[-1])) == (0.0, 100.0)
    assert linear_scale([3.2, 17.9], 0.0, 100.0, zero=True).ticks[0] == 0.0


def test_a_decade_takes_the_same_room_everywhere() -> None:
    scale = log_scale([1e-4, 1.0], 0.0, 400.0)
    assert [round(scale(10.0**power)) for power in range(-4, 1)] == [0, 100, 200, 300, 400]


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, -5e-324])
def test_values_too_small_to_divide_have_a_scale_too(tiny: float) -> None:
    for zero in (True, False):
        scale = linear_scale([0.0, tiny], 0.0, 100.0, zero=zero)
        assert scale.low < scale.high
