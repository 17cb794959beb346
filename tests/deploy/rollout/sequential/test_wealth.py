"""Wealth against a loop that follows its definition, against chance, and against candidates that turn bad late."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential.wealth import Wealth, opened

FACTORS = st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=2), min_size=1, max_size=40)
STAKES = (0.25, 0.75)


def by_hand(factors: list[list[float]], level: float, reopens: int) -> list[float]:
    """Worth after each sample: every round on its own, then the sum of their money and the cash."""
    worth = []
    for now in range(1, len(factors) + 1):
        total, paid = 0.0, 0.0
        starts = [0] + ([reopens * number for number in range(1, 50)] if reopens else [])
        for number, start in enumerate(starts):
            share = 1.0 if not reopens else 0.9 if number == 0 else 0.1 / (number * (number + 1))
            if start >= now:
                continue
            paid += share
            for bet, stake in enumerate(STAKES):
                total += share * stake * math.exp(sum(row[bet] for row in factors[start:now]))
        worth.append(total + 1 - paid)
    return worth


@settings(max_examples=60, deadline=None)
@given(FACTORS, st.sampled_from([0, 1, 5]))
def test_wealth_is_that_of_its_definition(factors: list[list[float]], reopens: int) -> None:
    found = opened(0.05, STAKES, reopens=reopens).advance(factors, [1] * len(factors))
    expected = by_hand(factors, 0.05, reopens)
    assert found.log_wealth == pytest.approx(math.log(expected[-1]), rel=1e-9, abs=1e-9)
    assert found.peak == pytest.approx(max(0.0, math.log(max(expected))), rel=1e-9, abs=1e-9)
    crossings = [number for number, worth in enumerate(expected, 1) if worth >= 20 * (1 + 1e-9)]
    assert found.crossed_at == (crossings[0] if crossings else None) or max(expected) == pytest.approx(20)


@settings(max_examples=60, deadline=None)
@given(FACTORS, st.data())
def test_how_samples_are_cut_into_looks_changes_nothing(factors: list[list[float]], data: st.DataObject) -> None:
    whole = opened(0.05, STAKES, reopens=4).advance(factors, [1] * len(factors))
    parts, row = opened(0.05, STAKES, reopens=4), 0
    while row < len(factors):
        step = data.draw(st.integers(1, len(factors) - row))
        parts = parts.advance(factors[row : row + step], [1] * step)
        row += step
    assert parts.samples == whole.samples
    assert parts.crossed_at == whole.crossed_at
    assert parts.rounds == whole.rounds
    assert np.allclose(parts.money, whole.money, rtol=1e-12, atol=1e-9)


def coins(share: float, runs: int, samples: int, seed: int) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).random((runs, samples)) < share


def refuted(tosses: npt.NDArray[Any], level: float) -> float:
    """Share of runs that refute "heads are at most a half", by a bet on two thirds."""
    heads, tails = math.log(4 / 3), math.log(2 / 3)
    ones = [1] * tosses.shape[1]
    runs = [opened(level, (1.0,), reopens=64).advance(np.where(run, heads, tails)[:, None], ones) for run in tosses]
    return float(np.mean([run.is_refuted for run in runs]))


def test_a_fair_coin_is_refuted_no_more_often_than_promised_and_a_bent_one_is() -> None:
    runs = 1000
    assert refuted(coins(0.5, runs, 1000, 1), 0.1) <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / runs)
    assert refuted(coins(0.5, runs, 1000, 2), 0.1) > 0.03
    assert refuted(coins(2 / 3, 200, 500, 3), 0.01) > 0.99


def test_a_coin_that_is_bent_late_is_found_by_a_later_round_only() -> None:
    tosses = np.concatenate([coins(0.5, 1, 4000, 4)[0], coins(0.75, 1, 600, 5)[0]])
    factors = np.where(tosses, math.log(4 / 3), math.log(2 / 3))[:, None]
    once, again = (opened(0.01, (1.0,), reopens=reopens).advance(factors, [1] * 4600) for reopens in (0, 256))
    assert not once.is_refuted
    assert again.crossed_at is not None
    assert 4000 < again.crossed_at < 4400


def test_nearness_goes_from_nothing_to_the_boundary_and_stays_there() -> None:
    wealth = opened(math.exp(-4), (1.0,))
    assert wealth.nearness == 0
    assert wealth.advance([[-5.0]], [1]).nearness == 0
    assert wealth.advance([[1.0]], [1]).nearness == pytest.approx(0.25)
    over = wealth.advance([[4.0], [-3.0]], [7, 1])
    assert (over.nearness, over.crossed_at, over.samples) == (1.0, 7, 8)
    assert over.peak == pytest.approx(4.0)


def test_everything_can_be_lost_without_a_word_from_the_arithmetic() -> None:
    broke = opened(0.05, (1.0,)).advance([[-math.inf], [1.0]], [1, 1])
    assert broke.log_wealth == -math.inf
    assert broke.nearness == 0


def test_bad_bets_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"a level lies between 0 and 1, such as 0\.01, got 5"):
        opened(5, (1.0,))
    with pytest.raises(SchemeError, match="stakes must be positive and sum to 1"):
        opened(0.05, (0.5, 0.4))
    with pytest.raises(SchemeError, match="2 stakes need as many logs of money"):
        Wealth(0.05, (0.5, 0.5), (0.0,))
    with pytest.raises(SchemeError, match="none NaN or infinite"):
        Wealth(0.05, (1.0,), (math.nan,))
    with pytest.raises(SchemeError, match="samples, reopens and rounds are 0 or more"):
        Wealth(0.05, (1.0,), (0.0,), reopens=-1)
    with pytest.raises(SchemeError, match=r"1 rows of 1 factors are needed, got shape \(1, 2\)"):
        opened(0.05, (1.0,)).advance([[0.0, 0.0]], [1])
    with pytest.raises(SchemeError, match="no factor is NaN or infinite"):
        opened(0.05, (1.0,)).advance([[math.inf]], [1])
