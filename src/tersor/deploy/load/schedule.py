"""When requests begin: pure functions of rate, length and seed, known before the first one is sent.

An open loop decides so. A closed loop, which sends the next request when the last one is answered, sends none while the
server stalls, and so leaves out just those that would have waited ("coordinated omission").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from tersor.core.errors import SchemeError

__all__ = ["Arrivals", "Step", "arrival_times", "steps_of"]

Arrivals: TypeAlias = Literal["constant", "poisson"]

CHUNK = 4096
"""Gaps drawn at once: a long run needs no more memory than a short one."""
MOST_PER_SECOND = 1e6
MOST_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Step:
    """Some time at one rate.

    rate      requests per second
    seconds   for which requests begin; the answers may take longer
    arrivals  "constant": evenly spaced; "poisson": at random and without memory, as from many independent users
    seed      of the random gaps
    """

    rate: float
    seconds: float
    arrivals: Arrivals = "constant"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= MOST_PER_SECOND:
            raise SchemeError(
                f"a rate is a number of requests per second, up to {MOST_PER_SECOND:g}, got {self.rate:g}"
            )
        if not 0 < self.seconds <= MOST_SECONDS:
            raise SchemeError(f"a step lasts up to {MOST_SECONDS:g} seconds, got {self.seconds:g}")
        if self.arrivals not in ("constant", "poisson"):
            raise SchemeError(f"arrivals are constant or poisson, got {self.arrivals!r}")
        if self.seed < 0:
            raise SchemeError(f"a seed is a whole number from 0 on, got {self.seed}")


def arrival_times(step: Step) -> Iterator[float]:
    """Yield the intended starts, in seconds since the step began, increasing and below `step.seconds`.

    A longer step begins with the times of a shorter one, and twice the rate halves every time.

    >>> list(arrival_times(Step(4, 1)))
    [0.0, 0.25, 0.5, 0.75]
    >>> [round(time, 2) for time in arrival_times(Step(4, 1, "poisson", seed=1))]
    [0.27, 0.35]
    """
    return _constant(step) if step.arrivals == "constant" else _poisson(step)


def steps_of(
    rates: tuple[float, ...], seconds: float, arrivals: Arrivals = "constant", seed: int = 0
) -> tuple[Step, ...]:
    """Return a step of each rate, each with a seed of its own; SchemeError without rates or for what no step can be.

    >>> [(step.rate, step.seed) for step in steps_of((50, 100), 10, "poisson", seed=7)]
    [(50, 7), (100, 8)]
    """
    if not rates:
        raise SchemeError("no rate to send at: give one or more numbers of requests per second")
    return tuple(Step(rate, seconds, arrivals, seed + index) for index, rate in enumerate(rates))


def _constant(step: Step) -> Iterator[float]:
    # Each time from its number: a sum of gaps would drift by its rounding.
    for index in range(math.ceil(step.rate * step.seconds) + 1):
        time = index / step.rate
        if time >= step.seconds:
            return
        yield time


def _poisson(step: Step) -> Iterator[float]:
    random, units = np.random.default_rng(step.seed), 0.0
    while True:
        for gap in random.standard_exponential(CHUNK).tolist():
            units += gap  # in mean gaps, and divided only here: that twice the rate halves every time is exact
            if units / step.rate >= step.seconds:
                return
            yield units / step.rate
