"""The trade-off curve: the best mix of every size, what it is predicted to cost, and what it measures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tersor.analyse.stitched import measure_mixes
from tersor.core.errors import SchemeError
from tersor.core.quantities import number, size
from tersor.decoder import Decoder
from tersor.evaluation.statistics import Interval, mean_interval
from tersor.pipeline.planning.goals import PlanGoal
from tersor.pipeline.planning.planning import Planner

__all__ = ["Curve", "CurveRow", "parse_sweep", "sweep"]

_SWEEP = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?")
POINTS = 12
MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One size.

    kl         predicted, nats per token
    measured   of the mix put together from candidates, on the analysis's own text; None where that was not asked for
    drop       of a net: percentage points of accuracy that are lost; None where nothing tells
    tokens_per_s  at most, by the rate at which weights are read; None where that is not known
    """

    bits_per_weight: float
    file_bytes: int
    kl: float
    measured: Interval | None
    tokens_per_s: float | None
    formats: dict[str, str]
    drop: float | None = None

    def shown(self) -> dict[str, str]:
        """Return the row for people."""
        found = {"bits per weight": f"{self.bits_per_weight:.3f}", "file": size(self.file_bytes)}
        found["predicted KL, nats"] = number(self.kl, 3)
        if self.measured is not None:
            found["measured KL, nats"] = number(self.measured.value, 3)
        if self.drop is not None:
            found["lost, points"] = f"{self.drop:.2f}"
        if self.tokens_per_s is not None:
            found["tokens/s at most"] = number(self.tokens_per_s, 3)
        return found


@dataclass(frozen=True, slots=True)
class Curve:
    """Rows by rising size; each is on the Pareto front of predictions, since it is the best mix of its size."""

    rows: tuple[CurveRow, ...]


def parse_sweep(text: str) -> list[float]:
    """Return the sizes of `FROM:TO` or `FROM:TO:STEP`, bits per weight.

    >>> parse_sweep("3:4:0.5"), len(parse_sweep("2.5:8"))
    ([3.0, 3.5, 4.0], 12)
    """
    match = _SWEEP.fullmatch(text.strip())
    if match is None:
        raise SchemeError(f"{text!r} is not FROM:TO or FROM:TO:STEP in bits per weight, for example 2.5:8")
    first, last = float(match[1]), float(match[2])
    step = float(match[3]) if match[3] else (last - first) / (POINTS - 1)
    if first <= 0 or last <= first or step <= 0 or (last - first) / step > MOST_POINTS:
        raise SchemeError(f"{text!r}: sizes must rise from above 0, in at most {MOST_POINTS} steps")
    count = int((last - first) / step + 1e-9) + 1
    return [round(first + step * index, 6) for index in range(count)]


def sweep(planner: Planner, sizes: Sequence[float], *, is_measured: bool, rate: float | None) -> Curve:
    """Return the curve at `sizes`, bits per weight; those that no mix has are left out, SchemeError if all are.

    rate  bytes per second at which weights are read, for the speed that no engine beats
    """
    found = []
    for bits in sizes:
        try:
            found.append(planner.plan(PlanGoal(bits_per_weight=bits), trials=0))
        except SchemeError:
            continue  # smaller than the smallest mix
    found = list({one.mix.nbytes: one for one in found}.values())
    if not found:
        raise SchemeError(f"no mix has {sizes[0]:g} to {sizes[-1]:g} bits per weight: its formats are larger")
    measured: dict[str, Interval] = {}
    if is_measured:
        mixes = {str(index): one.mix.formats for index, one in enumerate(found)}
        studied = planner.studied
        sides = measure_mixes(Decoder(planner.model), studied.surveyed, studied.measured_on, mixes, planner.progress)
        measured = {name: mean_interval(side.kl) for name, side in sides.items()}
    rows = [
        CurveRow(
            one.file.predicted["bits_per_weight"],
            one.file_bytes,
            one.kl,
            measured.get(str(index)),
            None if rate is None else rate / (one.file.predicted["tensor_bytes"] - planner.unread(one.mix.formats)),
            dict(one.mix.formats),
        )
        for index, one in enumerate(found)
    ]
    return Curve(tuple(rows))
