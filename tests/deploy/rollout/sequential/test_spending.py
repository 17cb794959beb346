"""The exact test of hits against every outcome there can be: how often it refutes what is true, over all looks."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.core.records import plain, read_record
from tersor.deploy.rollout.sequential import Count
from tersor.deploy.rollout.sequential.spending import EARLY, HORIZON, Spending

stats: Any = pytest.importorskip("scipy.stats")
LOOKS = [(6, 14, 5), (5, 20, 6), (8, 8, 9)]
"""Requests of the candidate and of the control, and hits of both together: enough that most of a level is spent."""


def law(look: tuple[int, int, int], odds: float) -> list[tuple[int, float]]:
    """Hits of the candidate in a look, each with its probability, by scipy."""
    ours, theirs, hits = look
    places = range(max(0, hits - theirs), min(ours, hits) + 1)
    fisher = stats.nchypergeom_fisher(ours + theirs, hits, ours, odds)
    return [(k, float(fisher.pmf(k))) for k in places]


def refuted(looks: list[tuple[int, int, int]], level: float, *, odds: float = 1.0, tolerated: float = 1.0) -> float:
    """Probability of being refuted at any look, over all paths; what each path says was spent is that of the claim."""
    total = 0.0
    for path in itertools.product(*(law(look, odds) for look in looks)):
        test = Spending(level)
        for (ours, theirs, hits), (k, _) in zip(looks, path, strict=True):
            test = test.advance(Count(k, ours), Count(hits - k, theirs), tolerated=tolerated)
        total += math.prod(chance for _, chance in path) * test.is_refuted
    return total


@pytest.mark.parametrize(("level", "tolerated"), [(0.3, 1.0), (0.1, 1.0), (0.02, 1.0), (0.2, 2.0)])
def test_what_is_true_is_refuted_as_often_as_was_spent_and_never_more_than_promised(
    level: float, tolerated: float
) -> None:
    chance = refuted(LOOKS, level, odds=tolerated, tolerated=tolerated)
    test = Spending(level)
    for ours, theirs, hits in LOOKS:  # the path with the fewest hits is never refuted, and knows what was spent
        fewest = max(0, hits - theirs)
        test = test.advance(Count(fewest, ours), Count(hits - fewest, theirs), tolerated=tolerated)
    assert not test.is_refuted
    assert chance == pytest.approx(test.spent, rel=1e-6)
    assert level / 8 < chance <= level
    assert refuted(LOOKS, level, odds=tolerated / 2, tolerated=tolerated) < chance / 2
    assert refuted(LOOKS, level, odds=tolerated * 3, tolerated=tolerated) > chance * 3


def test_no_more_is_spent_by_any_look_than_its_information_allows() -> None:
    rng, test = np.random.default_rng(0), Spending(0.05)
    for _ in range(400):
        before = test
        ours, theirs = int(rng.binomial(100, 0.004)), int(rng.binomial(900, 0.004))
        test = test.advance(Count(ours, 100), Count(theirs, 900))
        times = test.information / HORIZON
        assert before.spent <= test.spent <= 0.05 * (EARLY if times < 1 else 1 - (1 - EARLY) / times) * (1 + 1e-6)
        assert math.fsum(test.alive) + test.spent == pytest.approx(1)
        if test.is_refuted:
            break
    assert test.spent > 0.04
    assert len(test.alive) < 200


def test_a_look_in_which_all_fail_or_none_does_tells_nothing() -> None:
    for hits in (0, 1):
        test = Spending(0.01).advance(Count(50 * hits, 50), Count(450 * hits, 450))
        assert (test.information, test.spent, test.nearness, test.samples) == (0, 0, 0, 50)


def test_what_was_refuted_stays_so() -> None:
    test = Spending(0.02).advance(Count(30, 100), Count(20, 900))
    assert (test.crossed_at, test.nearness) == (100, 1.0)
    again = test.advance(Count(0, 100), Count(90, 900))
    assert (again.crossed_at, again.nearness, again.samples, again.alive) == (100, 1.0, 200, test.alive)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60_000), st.integers(1, 60_000), st.floats(0, 1), st.floats(0, 1))
def test_any_look_leaves_a_law_that_can_be_kept_and_read_again(n: int, m: int, ours: float, theirs: float) -> None:
    look = Count(int(n * ours), n), Count(int(m * theirs), m)
    test = Spending(0.02).advance(*look).advance(*look)
    assert read_record(Spending, json.loads(json.dumps(plain(test), allow_nan=False)), "test") == test
    assert test.is_refuted or 0 <= test.nearness < 1


def test_what_cannot_be_is_refused() -> None:
    odd: tuple[dict[str, Any], ...] = (
        {"level": 0.0}, {"level": 1.0}, {"information": -1.0}, {"information": math.inf}, {"spent": 0.5},
    )  # fmt: skip
    for wrong in odd:
        with pytest.raises(SchemeError):
            Spending(**({"level": 0.02} | wrong))
    for wrong_law in ((), (0.5,), (1.5, -0.5), (math.nan,), (1.0,) * 200_000):
        with pytest.raises(SchemeError, match="the law of the hits"):
            Spending(0.02, alive=wrong_law)
