"""Paired comparisons against scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.fixed import mcnemar, odds_ratio_interval, paired_bootstrap
from tersor.evaluation.paired import Pairs

stats: Any = pytest.importorskip("scipy.stats")

PAIRS = st.builds(Pairs, st.integers(0, 60), st.integers(0, 60), st.integers(1, 200))


@settings(max_examples=100, deadline=None)
@given(PAIRS)
@example(Pairs(0, 0, 5))
@example(Pairs(0, 3000, 5))
def test_mcnemar_is_a_binomial_test_of_what_differs(pairs: Pairs) -> None:
    differing = pairs.wins + pairs.losses
    expected = stats.binomtest(pairs.wins, differing, 0.5).pvalue if differing else 1.0
    assert mcnemar(pairs) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@settings(max_examples=60, deadline=None)
@given(PAIRS.filter(lambda pairs: pairs.wins + pairs.losses > 0))
def test_the_odds_ratio_has_the_exact_interval(pairs: Pairs) -> None:
    ends = stats.binomtest(pairs.wins, pairs.wins + pairs.losses).proportion_ci(0.95, "exact")
    found = odds_ratio_interval(pairs)
    assert found.low == pytest.approx(ends.low / (1 - ends.low), rel=1e-6)
    assert found.high == (pytest.approx(ends.high / (1 - ends.high), rel=1e-6) if ends.high < 1 else math.inf)


def test_no_difference_seen_is_not_no_ratio() -> None:
    ratio = odds_ratio_interval(Pairs(0, 0, 100))
    assert (ratio.low, ratio.high) == (0.0, math.inf)
    assert math.isnan(ratio.value)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_bootstrap_is_that_of_scipy(statistic: Any) -> None:
    rng = np.random.default_rng(1)
    control = rng.exponential(size=40)
    candidate = control * rng.lognormal(0.2, 0.5, 40)
    found = paired_bootstrap(candidate, control, statistic, resamples=20_000)
    other = stats.bootstrap(
        (candidate, control),
        lambda x, y, axis: statistic(x, axis=axis) - statistic(y, axis=axis),
        paired=True,
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = other.high - other.low
    assert abs(found.low - other.low) < 0.06 * width
    assert abs(found.high - other.high) < 0.06 * width
    assert found == paired_bootstrap(candidate, control, statistic, resamples=20_000)


def test_the_bootstrap_covers_a_difference_of_means() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        control = rng.normal(size=50)
        found = paired_bootstrap(control + rng.normal(0.1, 1, 50), control, resamples=600)
        covered += found.low <= 0.1 <= found.high
    assert 0.89 < covered / 200 < 0.99


def test_equal_samples_have_an_interval_of_length_0() -> None:
    found = paired_bootstrap([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert found.low == pytest.approx(found.high, abs=1e-12) == pytest.approx(1.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(SchemeError, match=r"such as 0\.95, got 95"):
        odds_ratio_interval(Pairs(1, 1, 1), confidence=95)
    with pytest.raises(ShapeError, match="two rows of the same requests"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with pytest.raises(SchemeError, match="must be finite"):
        paired_bootstrap([1.0, math.nan], [1.0, 2.0])
