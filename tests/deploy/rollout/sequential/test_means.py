"""Bets on means and their interval, against the formulas of the paper in loops, and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.sequential import MeanInterval, Quality, QualityRules
from tersor.deploy.rollout.sequential.means import Moments, mean_factors

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def interval_by_the_paper(values: list[float], level: float) -> tuple[float, float]:
    """Theorem 2 of Waudby-Smith and Ramdas, one number after the other; the intersection of all intervals."""
    low, high = 0.0, 1.0
    mean, variance, seen, deviations = 0.5, 0.25, 0.0, 0.0
    weights = sums = penalty = 0.0
    for t, x in enumerate(values, 1):
        bet = min(math.sqrt(2 * math.log(2 / level) / (variance * t * math.log(1 + t))), 0.5)
        weights, sums = weights + bet, sums + bet * x
        penalty += 4 * (x - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
        radius = (math.log(2 / level) + penalty) / weights
        low, high = max(low, sums / weights - radius), min(high, sums / weights + radius)
        seen += x
        mean = (0.5 + seen) / (t + 1)
        deviations += (x - mean) ** 2
        variance = (0.25 + deviations) / (t + 1)
    return low, high


@settings(max_examples=80, deadline=None)
@given(VALUES, st.data())
def test_the_interval_is_that_of_the_paper_however_numbers_are_cut_into_looks(
    values: list[float], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(values)))
    found = MeanInterval(0.05).advance(np.array(values[:cut])).advance(np.array(values[cut:]))
    assert (found.low, found.high) == pytest.approx(interval_by_the_paper(values, 0.05), abs=1e-9)


def test_the_interval_holds_the_mean_at_all_times_at_once_and_shrinks() -> None:
    rng, missed, runs = np.random.default_rng(1), 0, 400
    for _ in range(runs):
        found = MeanInterval(0.1).advance(rng.beta(0.5, 4.5, 1500))
        missed += not found.low <= 0.1 <= found.high
        assert found.high - found.low < 0.08
    assert 0 < missed <= 0.1 * runs + 2 * math.sqrt(0.09 * runs)


def factors_in_a_loop(values: list[float], claim: float, design: float) -> list[list[float]]:
    sign = 1 if design > claim else -1
    limit = 0.75 / (claim if sign > 0 else 1 - claim)
    rows = []
    for t, x in enumerate(values):
        seen = [0.5, *values[:t]]
        mean = math.fsum(seen) / len(seen)
        variance = (0.25 + 0.25 + math.fsum(v * v for v in values[:t])) / len(seen) - mean**2
        bets = []
        for excess in (sign * (mean - claim), abs(design - claim)):
            bet = min(limit, max(0.0, excess / (max(variance, 1e-12) + excess**2)))
            bets.append(math.log(1 + sign * bet * (x - claim)))
        rows.append(bets)
    return rows


@settings(max_examples=80, deadline=None)
@given(VALUES, st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.data())
def test_bets_are_those_of_a_loop(values: list[float], claim: float, design: float, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values)))
    head, tail = np.array(values[:cut]), np.array(values[cut:])
    found = np.concatenate(
        [mean_factors(head, Moments(), claim, design), mean_factors(tail, Moments().add(head), claim, design)]
    )
    assert np.allclose(found, factors_in_a_loop(values, claim, design), rtol=1e-5, atol=1e-6)


def differences(loss: float, runs: int, samples: int, seed: int) -> npt.NDArray[Any]:
    """Right or wrong answers of both: 2 % of pairs differ each way, and the candidate loses `loss` more."""
    u = np.random.default_rng(seed).random((runs, samples))
    return np.where(u < 0.02, 1.0, np.where(u < 0.04 + loss, -1.0, 0.0))


def verdicts(loss: float, seed: int, rules: QualityRules, runs: int = 250) -> npt.NDArray[Any]:
    return np.array([Quality.begin(rules).update(run).standing.verdict for run in differences(loss, runs, 3000, seed)])


def test_quality_that_is_not_lost_is_called_harmful_no_more_often_than_promised() -> None:
    wrong = (verdicts(0.0, 2, QualityRules(level=0.1)) == "harmful").mean()
    assert wrong <= 0.1 + 2 * math.sqrt(0.09 / 250)
    assert (verdicts(0.01, 3, QualityRules(level=0.1, tolerated=0.01)) == "harmful").mean() <= 0.1 + 2 * math.sqrt(
        0.09 / 250
    )


def test_a_harmful_loss_is_called_safe_no_more_often_than_promised() -> None:
    wrong = (verdicts(0.02, 4, QualityRules(level=1e-9, safe_level=0.2)) == "safe").mean()
    assert 0.01 < wrong <= 0.2 + 2 * math.sqrt(0.16 / 250)


def test_losses_are_found_and_their_absence_too() -> None:
    assert (verdicts(0.05, 5, QualityRules(), 100) == "harmful").all()
    assert (verdicts(0.0, 6, QualityRules(), 100) == "safe").mean() > 0.9


def test_its_standing_shows_the_difference_with_its_interval() -> None:
    standing = Quality.begin().update(differences(0.05, 1, 3000, 7)[0]).standing
    numbers = standing.numbers
    assert numbers["low"] < -0.05 < numbers["high"] < 0
    assert numbers["low"] < numbers["difference"] < numbers["high"]
    assert standing.samples == 3000


def test_bad_input_is_refused() -> None:
    with pytest.raises(SchemeError, match="0 ≤ tolerated < harmful < 1"):
        QualityRules(tolerated=0.1)
    with pytest.raises(SchemeError, match="confidence lies between 0 and 1"):
        QualityRules(confidence=0)
    with pytest.raises(SchemeError, match="a level lies between 0 and 1"):
        MeanInterval(0)
    with pytest.raises(ShapeError, match="differences of quality are one row of numbers in −1 … 1"):
        Quality.begin().update([1.5])
