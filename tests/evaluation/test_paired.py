"""Differences of paired shares against likelihoods that are maximised numerically, and by enumeration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.evaluation.paired import Pairs, paired_difference_interval

stats: Any = pytest.importorskip("scipy.stats")
optimize: Any = pytest.importorskip("scipy.optimize")


def likelihood_score(pairs: Pairs, difference: float) -> float:
    """The score statistic with the likeliest rate of losses found by search, not by formula."""
    n = pairs.total

    def loss(rate: float) -> float:
        wins, ties = rate + difference, 1 - 2 * rate - difference
        terms = ((pairs.wins, wins), (pairs.losses, rate), (pairs.ties, ties))
        return -math.fsum(count * math.log(max(p, 1e-300)) for count, p in terms)

    low, high = max(0.0, -difference), (1 - difference) / 2
    rate = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return float((pairs.wins - pairs.losses - n * difference) / math.sqrt(n * (2 * rate + difference - difference**2)))


@settings(max_examples=40, deadline=None)
@given(st.builds(Pairs, st.integers(1, 60), st.integers(1, 60), st.integers(1, 200)))
def test_the_interval_of_the_difference_ends_where_the_score_test_refutes(pairs: Pairs) -> None:
    found = paired_difference_interval(pairs)
    assert likelihood_score(pairs, found.low) == pytest.approx(1.959964, rel=1e-3)
    assert likelihood_score(pairs, found.high) == pytest.approx(-1.959964, rel=1e-3)


def test_the_interval_of_the_difference_covers_what_it_promises() -> None:
    n, win, lose = 60, 0.05, 0.12
    covered = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            p = stats.multinomial.pmf([wins, losses, n - wins - losses], n, [win, lose, 1 - win - lose])
            if p > 1e-7:
                found = paired_difference_interval(Pairs(wins, losses, n - wins - losses))
                covered += p * (found.low <= win - lose <= found.high)
    assert 0.93 < covered < 0.97


def test_no_difference_seen_is_not_no_difference() -> None:
    found = paired_difference_interval(Pairs(0, 0, 100))
    assert found.value == 0
    assert 0.02 < found.high < 0.05
    assert found.low == pytest.approx(-found.high)


def test_pairs_are_counted_from_what_each_got_right() -> None:
    candidate, control = (np.array(right, bool) for right in ([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]))
    assert Pairs.of(candidate, control) == Pairs(wins=2, losses=1, ties=2)
    for counts in ((0, 0, 0), (-1, 2, 3)):
        with pytest.raises(SchemeError, match="pairs are counted, at least one"):
            Pairs(*counts)
    with pytest.raises(SchemeError, match=r"such as 0\.95, got 95"):
        paired_difference_interval(Pairs(1, 1, 1), confidence=95)
