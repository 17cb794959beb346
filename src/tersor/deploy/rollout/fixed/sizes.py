"""How many requests an A/B test needs before it is begun.

Each gives the number with which a test of `level` (one-sided unless `sides` is 2) finds an effect of the size asked for
with a probability of `power`. A sequential test needs about half of it where the effect is larger, and some more where
it is as small as that.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError

__all__ = ["pairs_for_mcnemar", "pairs_for_means", "requests_for_means", "requests_for_shares"]

Sides: TypeAlias = Literal[1, 2]


def pairs_for_mcnemar(
    loss: float, differing: float, *, level: float = 0.05, power: float = 0.8, sides: Sides = 1
) -> int:
    """Return the pairs that show a difference of `loss` when both see the same requests.

    Source: Connor 1987 (Biometrics 43, 207). The exact test cannot use up its level: at this number it has a power of
    two to six points less, and about the one asked for with 1/loss pairs more.

    loss       difference of the shares of right answers, 0.01: one point; above 0
    differing  share of requests that only one of both answers rightly, ≥ loss

    >>> pairs_for_mcnemar(0.01, 0.03)
    1853
    """
    if not 0 < loss <= differing <= 1:
        raise SchemeError(f"0 < loss ≤ differing ≤ 1 is needed, got {loss:g} and {differing:g}")
    a, b = _quantiles(level, power, sides)
    return math.ceil(((a * math.sqrt(differing) + b * math.sqrt(differing - loss**2)) / loss) ** 2)


def requests_for_shares(
    candidate: float, control: float, *, ratio: float = 1.0, level: float = 0.05, power: float = 0.8, sides: Sides = 1
) -> int:
    """Return the candidate's requests that show the difference of two shares; the control serves `ratio` times as many.

    >>> requests_for_shares(0.79, 0.80)
    20149
    """
    if not (0 < candidate < 1 and 0 < control < 1 and candidate != control and 0 < ratio < math.inf):
        raise SchemeError(f"two shares between 0 and 1 that differ are needed, got {candidate:g}, {control:g}")
    a, b = _quantiles(level, power, sides)
    variance = candidate * (1 - candidate) + control * (1 - control) / ratio
    return math.ceil((a + b) ** 2 * variance / (candidate - control) ** 2)


def requests_for_means(
    difference: float,
    deviation: float,
    *,
    ratio: float = 1.0,
    level: float = 0.05,
    power: float = 0.8,
    sides: Sides = 1,
) -> int:
    """Return the candidate's requests that show a difference of means; the control serves `ratio` times as many.

    deviation  standard deviation of one request's score, in the unit of `difference`
    With Guenther's correction (1981) for not knowing the deviation.

    >>> requests_for_means(0.5, 1.0, sides=2)
    64
    """
    a, b = _scaled(difference, deviation, level, power, sides)
    if not 0 < ratio < math.inf:
        raise SchemeError(f"the control serves a positive number of times as many requests, got {ratio:g}")
    return math.ceil((a + b) ** 2 * (1 + 1 / ratio) * (deviation / difference) ** 2 + a**2 / (2 * (1 + ratio)))


def pairs_for_means(
    difference: float, deviation: float, *, level: float = 0.05, power: float = 0.8, sides: Sides = 1
) -> int:
    """Return the pairs that show a mean difference; `deviation` is that of the differences.

    >>> pairs_for_means(0.5, 1.0, sides=2)
    34
    """
    a, b = _scaled(difference, deviation, level, power, sides)
    return math.ceil((a + b) ** 2 * (deviation / difference) ** 2 + a**2 / 2)


def _scaled(difference: float, deviation: float, level: float, power: float, sides: Sides) -> tuple[float, float]:
    if not (0 < abs(difference) < math.inf and 0 < deviation < math.inf):
        raise SchemeError(
            f"a difference other than 0 and a positive deviation are needed: {difference:g}, {deviation:g}"
        )
    return _quantiles(level, power, sides)


def _quantiles(level: float, power: float, sides: Sides) -> tuple[float, float]:
    """Normal quantiles of the level and the power."""
    if not (0 < level < 0.5 <= power < 1):
        raise SchemeError(f"0 < level < 0.5 ≤ power < 1 is needed, got {level:g} and {power:g}")
    return NormalDist().inv_cdf(1 - level / sides), NormalDist().inv_cdf(power)
