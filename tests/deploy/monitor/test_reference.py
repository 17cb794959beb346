"""Summaries of the calibration sample: counts against loops, and what the sample itself gives back."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.core.records import plain, read_record
from tersor.deploy.monitor import Categories, Histogram

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=20, max_size=80)
ANY = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40)


def counted_by_hand(reference: Histogram, window: list[float]) -> list[int]:
    found = [0] * (len(reference.counts) + 3)
    for x in window:
        if math.isnan(x):
            found[-1] += 1
        elif x < reference.edges[0]:
            found[0] += 1
        else:
            found[1 + bisect_left(reference.edges[1:], x)] += 1
    return found


@settings(max_examples=100, deadline=None)
@given(NUMBERS, ANY, st.integers(1, 30))
@example([5.0] * 20, [5.0, 4.0, 6.0, math.nan, math.inf, -math.inf], 10)
def test_every_number_falls_into_its_cell(sample: list[float], window: list[float], cells: int) -> None:
    reference = Histogram.of(sample, cells=cells)
    assert reference.count(window).tolist() == counted_by_hand(reference, window)
    own = reference.count(sample)
    assert own.tolist() == [0, *reference.counts, 0, 0]
    assert sum(reference.counts) == len(sample)


def test_cells_hold_about_equally_many_unless_numbers_repeat() -> None:
    assert set(Histogram.of(np.random.default_rng(1).normal(size=1000), cells=20).counts) == {50}
    repeated = Histogram.of([0.0] * 70 + list(range(1, 31)), cells=10)
    assert repeated.counts == (70, 10, 10, 10)


def test_labels_are_counted_with_what_was_never_seen_and_what_is_missing() -> None:
    reference = Categories.of(["de"] * 12 + ["en"] * 8 + [None])
    assert reference == Categories(("de", "en"), (12, 8), 1)
    assert reference.count(["en", "fr", None, "en", "it"]).tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize("reference", [Histogram.of(range(50)), Categories.of(["a", "b"] * 20)])
def test_windows_are_drawn_with_the_expected_shares_and_more_spread_than_a_multinomial(reference: Any) -> None:
    windows = reference.draw(200, 20_000, np.random.default_rng(2)) / 200
    assert np.allclose(windows.mean(axis=0), reference.shares, atol=0.002)
    # Dirichlet-multinomial: the calibration sample is finite as well.
    gaps, q = reference.gaps.sum(), reference.shares
    expected = q * (1 - q) / 200 * (gaps + 200) / (gaps + 1)
    assert np.allclose(windows.var(axis=0), expected, rtol=0.15)


def test_summaries_are_stored_and_read_to_the_last_bit() -> None:
    for reference in (Histogram.of(np.random.default_rng(3).normal(size=99)), Categories.of(["a", "b"] * 20)):
        assert read_record(type(reference), json.loads(json.dumps(plain(reference))), "reference") == reference


def test_broken_summaries_are_refused() -> None:
    with pytest.raises(SchemeError, match="20 finite numbers or more are needed to know a feature, got 3"):
        Histogram.of([1.0, 2.0, 3.0, math.nan])
    with pytest.raises(SchemeError, match="20 finite numbers"):
        Histogram.of([math.inf] * 30)
    with pytest.raises(SchemeError, match="1 to 1024 cells, got 0"):
        Histogram.of(range(50), cells=0)
    with pytest.raises(ShapeError, match="a feature is one row of numbers"):
        Histogram.of([[1.0]])
    with pytest.raises(SchemeError, match="3 edges need one count less"):
        Histogram((0.0, 1.0, 2.0), (20,))
    for edges in ((0.0, 2.0, 1.0), (0.0, 1.0, math.inf), (1.0, 0.0, 2.0)):
        with pytest.raises(SchemeError, match="finite and rising"):
            Histogram(edges, (20, 20))
    with pytest.raises(SchemeError, match="20 or more together"):
        Histogram((0.0, 1.0), (5,))
    with pytest.raises(SchemeError, match="every label is counted once"):
        Categories(("a", "a"), (20, 20))
    with pytest.raises(SchemeError, match="group the rare ones first"):
        Categories.of(map(str, range(2000)))
    with pytest.raises(FormatError, match="reference: missing keys"):
        read_record(Histogram, {"edges": []}, "reference")
