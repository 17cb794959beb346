"""The figures of a report, a row each: how each is read from what was counted, and how sure it is.

Intervals hold 95 of 100 times, requests taken as independent. Of shares they are Jeffreys'; of quantiles, all times
whose share of faster answers may be the one asked for (Woodruff 1952), as fine as the recorder's steps of 5 %. The
difference of two shares is Newcombe's (method 10); that of two quantiles is made of their intervals in the same way
(Zou and Donner 2008, Statistics in Medicine 27, "MOVER").
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from tersor.deploy.gateway.recording.cells import LEAST_S, RATIO, Cell, figures
from tersor.deploy.rollout.fixed import difference_interval
from tersor.deploy.rollout.sequential.counts import Count
from tersor.evaluation.distributions import beta_quantile, beta_share

__all__ = ["FIGURES", "Compared", "Figure", "Value", "compared"]

TAIL = 0.025
"""On either side of an interval."""
Unit: TypeAlias = Literal["seconds", "bytes", "requests/s", "tokens/s", "share", "nats or share"]
Better: TypeAlias = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A row.

    name     key of `cells.figures`
    absent   why there may be none
    better   which direction is; neither: it tells what was asked for, or cannot be compared
    of       fields of a Cell that a share is made of: the part, then what adds up to the whole
    steps    field of a Cell that holds the times of a quantile, and
    quantile its share
    is_of_reference  whether full precision has it as well
    """

    name: str
    title: str
    unit: Unit
    absent: str
    better: Better = "lower"
    of: tuple[str, ...] = ()
    steps: str = ""
    quantile: float = 0.0
    is_of_reference: bool = True


ASKED = ("failed", "answered", "failed", "fell_back")
NONE_ANSWERED = "no request was answered"
FIGURES: tuple[Figure, ...] = (
    Figure("latency_p50_s", "latency, p50", "seconds", NONE_ANSWERED, steps="whole", quantile=0.50),
    Figure("latency_p95_s", "latency, p95", "seconds", NONE_ANSWERED, steps="whole", quantile=0.95),
    Figure("latency_p99_s", "latency, p99", "seconds", NONE_ANSWERED, steps="whole", quantile=0.99),
    Figure("first_part_p50_s", "time to first token, p50", "seconds", NONE_ANSWERED, steps="first", quantile=0.50),
    Figure("first_part_p95_s", "time to first token, p95", "seconds", NONE_ANSWERED, steps="first", quantile=0.95),
    Figure("requests_per_s", "throughput, requests", "requests/s", NONE_ANSWERED, "neither"),
    Figure("tokens_per_s", "throughput, tokens", "tokens/s", "no tokens were counted", "neither"),
    Figure("memory_bytes", "memory of the engine, most", "bytes", "the engine runs elsewhere, or was not seen"),
    Figure("error_share", "error rate", "share", "nobody asked", of=ASKED),
    Figure(
        "fallback_share", "fallback rate", "share", "nobody asked",
        of=("fell_back", *ASKED[1:]), is_of_reference=False,
    ),
    Figure(
        "agreement", "agreement with full precision", "share", "no answers were compared",
        "higher", of=("agreed", "compared"), is_of_reference=False,
    ),
    Figure(
        "agreement_floor", "… of full precision with itself", "share", "none was compared with itself",
        "neither", of=("floor_agreed", "floors"), is_of_reference=False,
    ),
    Figure(
        "apart", "distance from full precision", "nats or share", "no answers were compared", is_of_reference=False
    ),
    Figure(
        "apart_floor", "… of full precision from itself", "nats or share", "none was compared with itself", "neither",
        is_of_reference=False,
    ),
    Figure("accuracy", "accuracy by labels", "share", "no labels came", "higher", of=("right", "labelled")),
    Figure(
        "estimated_accuracy", "accuracy, estimated without labels", "share", "no confidence is calibrated", "higher",
        of=("expected", "estimated"),
    ),
)  # fmt: skip
"""In the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Value:
    """A figure of one variant, with the ends of its interval where it has one; `of`: how many it rests on, if counted.

    An end is infinite where so few answers do not bound it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    of: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of a variant beside full precision's.

    ours, full  None where nothing tells of it: `absent` says why ours is missing
    difference  ours less full precision's
    """

    figure: Figure
    ours: Value | None
    full: Value | None
    difference: Value | None

    @property
    def reading(self) -> str:
        """What the difference says: better, worse, "not shown" where chance may explain it, empty where none can be."""
        told, better = self.difference, self.figure.better
        if told is None or told.low is None or told.high is None or better == "neither":
            return ""
        if told.low <= 0 <= told.high:
            return "not shown"
        return "better" if (told.value < 0) == (better == "lower") else "worse"


def compared(cell: Cell, full: Cell | None, seconds: float) -> tuple[Compared, ...]:
    """Return every figure of a span of `seconds`, beside that of full precision where there is one."""
    values, others = figures(cell, seconds), None if full is None else figures(full, seconds)
    rows = []
    for figure in FIGURES:
        ours = _value(figure, cell, values)
        theirs = _value(figure, full, others) if full is not None and others and figure.is_of_reference else None
        rows.append(Compared(figure, ours, theirs, _difference(figure, cell, ours, full, theirs)))
    return tuple(rows)


def _value(figure: Figure, cell: Cell, values: Mapping[str, float | None]) -> Value | None:
    value = values.get(figure.name)
    if value is None or (figure.unit in ("requests/s", "tokens/s") and not value):
        return None
    if figure.of:
        count = _count(figure, cell)
        low, high = _share_ends(count.hits, count.total)
        moved = value - count.share  # a share that something was taken off keeps its width
        return Value(value, max(0.0, low + moved), min(1.0, high + moved), count.total)
    if figure.steps:
        steps: Mapping[int, int] = getattr(cell, figure.steps)
        low, high = _quantile_ends(steps, figure.quantile)
        return Value(value, min(low, value), max(high, value), sum(steps.values()))
    return Value(value)


def _count(figure: Figure, cell: Cell) -> Count:
    part, *whole = figure.of
    total = sum(getattr(cell, name) for name in whole)
    return Count(min(round(getattr(cell, part)), total), total)


def _share_ends(hits: int, total: int) -> tuple[float, float]:
    """Jeffreys' interval of a share (Brown, Cai and DasGupta 2001)."""
    low = beta_quantile(TAIL, hits + 0.5, total - hits + 0.5) if hits else 0.0
    high = beta_quantile(1 - TAIL, hits + 0.5, total - hits + 0.5) if hits < total else 1.0
    return low, high


def _quantile_ends(steps: Mapping[int, int], share: float) -> tuple[float, float]:
    """The least and the largest time that may be the quantile, seconds; infinite where none bounds it."""
    places = sorted(steps)
    below = list(accumulate(steps[place] for place in places))

    def chance(index: int) -> float:
        """That the true share of answers up to a step lies below the one asked for: Jeffreys' posterior of it."""
        return beta_share(share, below[index] + 0.5, below[-1] - below[index] + 0.5)

    ends = range(len(places) - 1)  # up to the last step are all of them
    first = bisect_left(ends, True, key=lambda index: chance(index) <= 1 - TAIL)
    last = bisect_left(ends, True, key=lambda index: chance(index) < TAIL)
    is_bounded = last < len(ends) or chance(last) < TAIL
    low = LEAST_S * RATIO ** places[first] if places[first] else 0.0
    return low, LEAST_S * RATIO ** (places[last] + 1) if is_bounded else math.inf


def _difference(
    figure: Figure, cell: Cell, ours: Value | None, full: Cell | None, theirs: Value | None
) -> Value | None:
    if ours is None or theirs is None or full is None or figure.unit in ("requests/s", "tokens/s"):
        return None
    value = ours.value - theirs.value
    if figure.of:
        found = difference_interval(_count(figure, cell), _count(figure, full))
        return Value(value, found.low, found.high, found.units)
    if ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
        return Value(value)
    low = value - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = value + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Value(value, low, high, ours.of + theirs.of)
