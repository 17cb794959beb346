"""Sample sizes against the exact power of the tests they are for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.fixed import pairs_for_mcnemar, pairs_for_means, requests_for_means, requests_for_shares

stats: Any = pytest.importorskip("scipy.stats")


def power_of_mcnemar(pairs: int, loss: float, differing: float, *, whole: bool) -> float:
    """Power of the one-sided test at 0.05, summed over how many pairs differ: exact, or with its level used up."""
    share, total = (differing + loss) / 2 / differing, 0.0
    for number in range(pairs + 1):
        p = float(stats.binom.pmf(number, pairs, differing))
        if p < 1e-9:
            continue
        first = int(stats.binom.isf(0.05, number, 0.5)) + 1  # the fewest losses that it rejects for
        power = float(stats.binom.sf(first - 1, number, share))
        if whole:
            spare = 0.05 - float(stats.binom.sf(first - 1, number, 0.5))
            power += spare / stats.binom.pmf(first - 1, number, 0.5) * stats.binom.pmf(first - 1, number, share)
        total += p * power
    return total


@pytest.mark.parametrize(("loss", "differing"), [(0.05, 0.15), (0.03, 0.05), (0.02, 0.1)])
def test_mcnemar_has_the_power_asked_for(loss: float, differing: float) -> None:
    pairs = pairs_for_mcnemar(loss, differing)
    assert power_of_mcnemar(pairs, loss, differing, whole=True) == pytest.approx(0.8, abs=0.025)
    assert 0.74 < power_of_mcnemar(pairs, loss, differing, whole=False) < 0.8
    more = math.ceil(pairs + 1 / loss)
    assert power_of_mcnemar(more, loss, differing, whole=False) == pytest.approx(0.8, abs=0.01)


def test_pairs_need_fewer_requests_than_two_arms() -> None:
    """The case of deploying a quantized model: one point of accuracy, 3 % of answers differ."""
    assert pairs_for_mcnemar(0.01, 0.03) == 1853
    assert requests_for_shares(0.79, 0.80) == 20149


@pytest.mark.parametrize(("candidate", "control", "ratio"), [(0.79, 0.80, 1.0), (0.02, 0.005, 1.0), (0.3, 0.2, 4.0)])
def test_shares_have_the_power_asked_for(candidate: float, control: float, ratio: float) -> None:
    n = requests_for_shares(candidate, control, ratio=ratio, power=0.9)
    rng = np.random.default_rng(1)
    ours = rng.binomial(n, candidate, 40_000) / n
    theirs = rng.binomial(round(n * ratio), control, 40_000) / round(n * ratio)
    error = np.sqrt(ours * (1 - ours) / n + theirs * (1 - theirs) / (n * ratio))
    assert (np.abs(ours - theirs) / error > 1.644854).mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("effect", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("sides", [1, 2])
def test_means_have_the_power_asked_for(effect: float, sides: Any) -> None:
    n, pairs = requests_for_means(effect, 1.0, sides=sides), pairs_for_means(effect, 1.0, sides=sides)

    def power(n: int, freedom: int, noncentrality: float) -> float:
        return float(stats.nct.sf(stats.t.ppf(1 - 0.05 / sides, freedom), freedom, noncentrality))

    assert power(n, 2 * n - 2, effect * math.sqrt(n / 2)) == pytest.approx(0.805, abs=0.015)
    assert power(pairs, pairs - 1, effect * math.sqrt(pairs)) == pytest.approx(0.81, abs=0.02)


def test_a_larger_control_saves_requests_of_the_candidate_up_to_a_half() -> None:
    one, many = requests_for_means(0.1, 1.0), requests_for_means(0.1, 1.0, ratio=1000.0)
    assert many == pytest.approx(one / 2, rel=0.01)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(SchemeError, match="0 < loss ≤ differing ≤ 1"):
        pairs_for_mcnemar(0.05, 0.03)
    with pytest.raises(SchemeError, match="two shares between 0 and 1 that differ"):
        requests_for_shares(0.5, 0.5)
    with pytest.raises(SchemeError, match="a difference other than 0"):
        pairs_for_means(0.0, 1.0)
    with pytest.raises(SchemeError, match="positive number of times as many"):
        requests_for_means(0.1, 1.0, ratio=0)
    with pytest.raises(SchemeError, match=r"0 < level < 0\.5 ≤ power < 1"):
        pairs_for_means(0.1, 1.0, power=80)
