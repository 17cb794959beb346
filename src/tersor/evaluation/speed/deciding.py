"""Which of several is the fastest, from rounds in which they ran side by side: medians of paired ratios decide.

What disturbs a machine for a while disturbs all of a round, and cancels in their ratios; the median passes over rounds
in which it disturbed one alone. More rounds are run while two are close and the interval of their ratio is wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.evaluation.speed.summary import order_interval

__all__ = ["CLOSE", "leader", "paired_ratio", "undecided"]

CLOSE = 0.02
"""Part of its time by which one may be slower than the best and still be as good."""
CLEAR = 0.99
"""Confidence with which one has to be slower to drop out: it is asked after each round."""


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of times / others over the rounds that both ran, the first ones.

    >>> paired_ratio([2.0, 4.0, 9.0], [1.0, 2.0])
    2.0
    """
    count = min(len(times), len(others))
    return float(np.median(np.asarray(times[:count]) / np.asarray(others[:count])))


def leader(blocks: Sequence[Sequence[float]]) -> int:
    """Return which was fastest; `blocks` has the times of each, round by round.

    The one whose paired ratio to any other is at most 1, or least above it; of those that ran the most rounds, for
    others have dropped out.

    >>> leader([[3.0, 3.0, 30.0], [2.0, 9.0, 20.0], [1.0]])
    1
    """
    most = max(len(times) for times in blocks)
    lasted = [index for index, times in enumerate(blocks) if len(times) == most]

    def worst(index: int) -> float:
        return max((paired_ratio(blocks[index], blocks[other]) for other in lasted if other != index), default=1.0)

    return min(lasted, key=worst)


def undecided(blocks: Sequence[Sequence[float]]) -> list[int]:
    """Return which go on: those that may yet be the fastest. Empty: one is, and no other is clearly faster than CLOSE.

    blocks  seconds above 0 of each, for the same rounds

    >>> undecided([[1.0] * 9, [2.0] * 9]), undecided([[1.0] * 9, [1.01] * 9]), undecided([[1.0] * 3, [1.3] * 3])
    ([], [], [0, 1])
    """
    best = leader(blocks)
    going, is_open = [best], False
    for index, times in enumerate(blocks):
        if index == best:
            continue
        interval = order_interval([a / b for a, b in zip(times, blocks[best], strict=True)], CLEAR)
        if interval is None or interval[0] <= 1:
            going.append(index)
            is_open = is_open or interval is None or interval[1] > 1 + CLOSE
    return sorted(going) if is_open else []
