"""Clipping rates: against scipy where activations are independent, and by simulation where they are not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.monitor import ClippingReference, clipping

stats: Any = pytest.importorskip("scipy.stats")


def requests(
    rate: float, number: int, rng: np.random.Generator, worth: float = 1.0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Clipped and all activations of requests; each request has its own rate, so that `worth` count as one."""
    sizes = rng.integers(500, 1500, number)
    if worth == 1:
        return rng.binomial(sizes, rate), sizes
    prior = (sizes.mean() - 1) / (worth - 1) - 1
    return rng.binomial(sizes, rng.beta(rate * prior, (1 - rate) * prior, number)), sizes


def test_independent_activations_have_a_binomial_test() -> None:
    reference = ClippingReference(40, 10_000, 1.0)
    found = clipping(reference, [9, 11], [2000, 2000])
    assert found.p_value == pytest.approx(stats.binom.sf(19, 60, 4000 / 14_000), rel=1e-9)
    assert (found.share, found.expected, found.requests) == (0.005, 0.004, 2)


def test_the_design_effect_is_that_of_the_simulation() -> None:
    rng = np.random.default_rng(1)
    assert ClippingReference.of(*requests(0.01, 3000, rng)).effect == pytest.approx(1, abs=0.1)
    assert ClippingReference.of(*requests(0.01, 3000, rng, worth=20)).effect == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize("worth", [1, 30])
def test_without_drift_small_p_values_are_as_rare_as_they_say(worth: float) -> None:
    rng, p_values = np.random.default_rng(2), []
    for _ in range(500):
        reference = ClippingReference.of(*requests(0.01, 200, rng, worth))
        p_values.append(clipping(reference, *requests(0.01, 100, rng, worth)).p_value)
    for level in (0.01, 0.05):
        assert np.mean(np.array(p_values) <= level) <= level + 2.6 * math.sqrt(level * (1 - level) / 500)


def test_counting_correlated_activations_as_independent_would_alarm_all_the_time() -> None:
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(100):
        clipped, totals = requests(0.01, 200, rng, worth=30)
        reference = ClippingReference(int(clipped.sum()), int(totals.sum()), 1.0)
        hits, sizes = requests(0.01, 100, rng, worth=30)
        alarms += stats.binomtest(int(hits.sum()), int(sizes.sum()), reference.clipped / reference.total).pvalue < 0.01
    assert alarms > 50


def test_more_clipping_is_found_and_less_is_none() -> None:
    rng = np.random.default_rng(4)
    reference = ClippingReference.of(*requests(0.01, 200, rng, 30))
    assert clipping(reference, *requests(0.03, 100, rng, 30)).p_value < 1e-4
    assert clipping(reference, *requests(0.003, 100, rng, 30)).p_value > 0.9


def test_a_layer_that_clipped_nothing_has_a_test_as_well() -> None:
    never = ClippingReference.of([0, 0, 0], [1000, 1000, 1000])
    assert clipping(never, [0, 0], [500, 500]).p_value == 1.0
    assert clipping(never, [30, 25], [500, 500]).p_value < 1e-6


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="2 requests or more are needed"):
        ClippingReference.of([1], [10])
    with pytest.raises(ShapeError, match="2 requests or more are needed"):
        clipping(ClippingReference(1, 10, 1.0), [1, 2], [10])
    with pytest.raises(ShapeError, match="none to all are clipped"):
        ClippingReference.of([11, 1], [10, 10])
    for wrong in ((5, 4, 1.0), (0, 0, 1.0), (1, 10, 0.5), (1, 10, math.nan)):
        with pytest.raises(SchemeError, match="0 ≤ clipped ≤ total and 1 ≤ effect ≤ total"):
            ClippingReference(*wrong)
