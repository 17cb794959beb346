"""The last hour of the record by minutes: what the page draws of each variant."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

from tersor.deploy.gateway.recording.cells import Cell, added, quantile
from tersor.deploy.gateway.recording.recorder import MINUTE_S, MINUTES, Record

__all__ = ["LINES", "Points", "minutes_of"]

Points: TypeAlias = MutableMapping[tuple[str, str, int], tuple[float | None, ...]]
"""Model, variant and minute → what each chart shows there."""

SPAN = 10
"""Minutes that a point of a share or quantile looks back over: one minute holds too few to tell."""
MOST_VARIANTS = 4


def _share(part: str, whole: str) -> Callable[[Sequence[Cell]], float | None]:
    def of(cells: Sequence[Cell]) -> float | None:
        total = sum(getattr(cell, whole) for cell in cells)
        return sum(getattr(cell, part) for cell in cells) / total if total else None

    return of


def _first(cells: Sequence[Cell]) -> float | None:
    return quantile(added(cells).first, 0.5)


def _memory(cells: Sequence[Cell]) -> float | None:
    return float(cells[-1].memory_bytes) or None if cells else None


LINES: Mapping[str, Callable[[Sequence[Cell]], float | None]] = {
    "agreement": _share("agreed", "compared"),
    "accuracy": _share("right", "labelled"),
    "first": _first,
    "memory": _memory,
}
"""Chart → its value at a minute, from the minutes until then, the last SPAN at most."""


def minutes_of(
    records: Mapping[tuple[str, str], Record],
    models: Mapping[str, Sequence[str]],
    moment: float,
    known: Points | None = None,
) -> dict[str, Any]:
    """Return what charts draw: `at`, and by model its `variants`, and by chart and variant a list a line.

    models  with their variants, those that matter most first: MOST_VARIANTS are drawn
    known   what earlier calls made of minutes that have ended, which change no more: they take all of the time
    A variant that a chart has nothing of is left out there; a minute that lasts is drawn as it is so far.
    """
    known = {} if known is None else known
    last = int(moment) // MINUTE_S * MINUTE_S
    at = range(last - (MINUTES - 1) * MINUTE_S, last + 1, MINUTE_S)
    told: dict[str, Any] = {}
    for model, order in models.items():
        charts: dict[str, dict[str, Any]] = {}
        variants = [variant for variant in order if (model, variant) in records][:MOST_VARIANTS]
        for variant in variants:
            record = records[model, variant]
            cells = [*record.minutes, *([record.now] if record.now.at else [])]
            begins = [cell.at for cell in cells]
            points = []
            for minute in at:
                point = known.get((model, variant, minute))
                if point is None:
                    shown = _until(cells, begins, minute)
                    point = tuple(_short(value(shown)) for value in LINES.values())
                    if minute < record.now.at:
                        known[model, variant, minute] = point
                points.append(point)
            for chart, line in zip(LINES, map(list, zip(*points, strict=True)), strict=True):
                if any(one is not None for one in line):
                    charts.setdefault(chart, {})[variant] = line
        told[model] = {"variants": variants, "charts": charts}
    for key in [key for key in known if key[2] < at[0]]:
        del known[key]
    return {"at": list(at), "models": told}


def _until(cells: Sequence[Cell], begins: Sequence[int], minute: int) -> Sequence[Cell]:
    """Those of the SPAN minutes that end with `minute`; none where nothing was counted in that one."""
    first, end = (bisect_right(begins, moment) for moment in (minute - SPAN * MINUTE_S, minute))
    shown = cells[first:end]
    return shown if shown and shown[-1].at == minute else []


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
