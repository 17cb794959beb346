"""Unpaired effects: published intervals, coverage by enumeration, and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.fixed import difference_interval, h_interval, standardized_interval
from tersor.deploy.rollout.sequential import Count
from tersor.evaluation.statistics import Interval

stats: Any = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("candidate", "control", "low", "high"),
    [  # table II of Newcombe's paper, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
    ],
)
def test_the_difference_has_the_published_intervals(
    candidate: tuple[int, int], control: tuple[int, int], low: float, high: float
) -> None:
    found = difference_interval(Count(*candidate), Count(*control))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("interval", "effect"),
    [
        (difference_interval, lambda p, q: p - q),
        (h_interval, lambda p, q: 2 * math.asin(math.sqrt(p)) - 2 * math.asin(math.sqrt(q))),
    ],
)
def test_intervals_cover_what_they_promise(
    interval: Callable[[Count, Count], Interval], effect: Callable[[float, float], float]
) -> None:
    n, m, p, q = 60, 80, 0.3, 0.2
    covered = math.fsum(
        stats.binom.pmf(i, n, p) * stats.binom.pmf(j, m, q)
        for i in range(n + 1)
        for j in range(m + 1)
        if (found := interval(Count(i, n), Count(j, m))).low <= effect(p, q) <= found.high
    )
    assert 0.935 < covered < 0.965


def test_the_standardized_difference_covers_what_it_promises() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(1000):
        found = standardized_interval(rng.normal(0.4, 1, 40))
        covered += found.low <= 0.4 <= found.high
    assert 0.93 < covered / 1000 < 0.97


def test_bad_input_is_refused() -> None:
    with pytest.raises(SchemeError, match="both variants need a request: candidate 0, control 3"):
        difference_interval(Count(0, 0), Count(1, 3))
    with pytest.raises(SchemeError, match=r"such as 0\.95, got 2"):
        h_interval(Count(1, 2), Count(1, 3), confidence=2)
    with pytest.raises(ShapeError, match="4 finite differences or more"):
        standardized_interval([1.0, 2.0, math.nan, 3.0])
    with pytest.raises(SchemeError, match="all differences are equal"):
        standardized_interval([1.0] * 5)
