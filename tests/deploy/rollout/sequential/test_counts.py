"""Bets on counts: against scipy, and their mean over every outcome there can be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential.counts import Count, odds_factors, rise_factor

stats: Any = pytest.importorskip("scipy.stats")
optimize: Any = pytest.importorskip("scipy.optimize")


def chance(hits: int, size: int, share: float) -> float:
    """By the binomial law, written out: scipy's overflows for shares that are no normal floats."""
    return math.comb(size, hits) * share**hits * (1 - share) ** (size - hits)


def mean_over_outcomes(factor: Any, sizes: tuple[int, int], shares: tuple[float, float]) -> float:
    """Mean of exp(factor) when candidate and control have hits with `shares`, by enumeration."""
    (n, m), (ours, theirs) = sizes, shares
    return math.fsum(
        chance(i, n, ours) * chance(j, m, theirs) * math.exp(factor(Count(i, n), Count(j, m)))
        for i in range(n + 1)
        for j in range(m + 1)
    )


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_odds_are_bet_on_by_fishers_distribution(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    i, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    odds, tolerated = data.draw(st.floats(0.2, 8)), data.draw(st.floats(1, 2))
    found = odds_factors(Count(i, n), Count(j, m), [odds], tolerated=tolerated)
    law = stats.nchypergeom_fisher
    expected = law.logpmf(i, n + m, i + j, n, odds) - law.logpmf(i, n + m, i + j, n, tolerated)
    assert found[0] == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("base", [0.01, 0.3, 0.9])
def test_a_bet_on_odds_is_fair_at_equal_shares_whatever_these_are_and_loses_below(base: float) -> None:
    def factor(candidate: Count, control: Count) -> float:
        return float(odds_factors(candidate, control, [3.0])[0])

    assert mean_over_outcomes(factor, (6, 9), (base, base)) == pytest.approx(1, abs=1e-9)
    assert mean_over_outcomes(factor, (6, 9), (base * 0.7, base)) < 1
    assert mean_over_outcomes(factor, (6, 9), (min(0.99, base * 3), base)) > 1


def test_a_bet_against_tolerated_odds_is_fair_at_these_odds() -> None:
    odds = 0.2 / 0.8 * 1.5
    shares = odds / (1 + odds), 0.2

    def factor(candidate: Count, control: Count) -> float:
        return float(odds_factors(candidate, control, [4.0], tolerated=1.5)[0])

    assert mean_over_outcomes(factor, (8, 8), shares) == pytest.approx(1, abs=1e-9)
    assert mean_over_outcomes(factor, (8, 8), (0.2, 0.2)) < 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    guess=st.tuples(st.floats(0.001, 0.6), st.floats(0.001, 0.6)),
    margin=st.floats(0.002, 0.3),
    theirs=st.floats(0, 0.6),
    excess=st.floats(0, 0.1),
)
def test_a_bet_against_a_rise_never_gains_on_average_where_there_is_one(
    sizes: tuple[int, int], guess: tuple[float, float], margin: float, theirs: float, excess: float
) -> None:
    mean = mean_over_outcomes(
        lambda candidate, control: rise_factor(candidate, control, margin, guess),
        sizes,
        (min(1.0, theirs + margin + excess), theirs),
    )
    assert mean <= 1 + 1e-9


def test_a_bet_against_a_rise_gains_where_there_is_none() -> None:
    def factor(candidate: Count, control: Count) -> float:
        return rise_factor(candidate, control, 0.2, (0.1, 0.1))

    assert mean_over_outcomes(factor, (10, 20), (0.1, 0.1)) > 1.1
    assert rise_factor(Count(3, 10), Count(1, 10), 0.05, (0.3, 0.1)) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.001, 0.3), st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_a_rise_is_measured_from_the_nearest_shares(n: int, m: int, ours: float, theirs: float, margin: float) -> None:
    def distance(share: float) -> float:
        def divergence(p: float, q: float) -> float:
            return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

        return m * divergence(theirs, share) + n * divergence(ours, share + margin)

    # The mean factor under the guess itself is the least distance; it is linear in the counts.
    def mean(candidate: Count, control: Count) -> float:
        return rise_factor(candidate, control, margin, (ours, theirs))

    if ours - theirs >= margin:
        assert mean(Count(0, n), Count(0, m)) == 0
        return
    zero = mean(Count(0, n), Count(0, m))
    per_candidate = mean(Count(n, n), Count(0, m)) - zero
    per_control = mean(Count(0, n), Count(m, m)) - zero
    gain = zero + ours * per_candidate + theirs * per_control
    best = optimize.minimize_scalar(
        distance, bounds=(1e-9, 1 - margin - 1e-9), method="bounded", options={"xatol": 1e-10}
    )
    assert gain == pytest.approx(best.fun, rel=1e-5, abs=1e-7)


def test_large_looks_overflow_nothing() -> None:
    found = odds_factors(Count(40_000, 100_000), Count(60_000, 150_000), [0.5, 2.0])
    assert np.isfinite(found).all()
    assert (found < 0).all()


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(SchemeError, match="3 of 2 requests"):
        Count(3, 2)
    with pytest.raises(SchemeError, match="shares and the margin lie between 0 and 1"):
        rise_factor(Count(0, 1), Count(0, 1), 0.1, (0.0, 0.1))
    assert math.isnan(Count(0, 0).share)
