"""The last hour of the record by minutes: what the page draws of each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from tersor.deploy.gateway.recording.cells import Cell, added, quantile
from tersor.deploy.gateway.recording.recorder import MINUTE_S, MINUTES, Record

__all__ = ["LINES", "minutes_of"]

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
    records: Mapping[tuple[str, str], Record], models: Mapping[str, Sequence[str]], moment: float
) -> dict[str, Any]:
    """Return what charts draw: `at`, and by model its `variants`, and by chart and variant a list a line.

    models  with their variants, those that matter most first: MOST_VARIANTS are drawn
    A variant that a chart has nothing of is left out there; a minute that lasts is drawn as it is so far.
    """
    last = int(moment) // MINUTE_S * MINUTE_S
    at = range(last - (MINUTES - 1) * MINUTE_S, last + 1, MINUTE_S)
    told: dict[str, Any] = {}
    for model, order in models.items():
        charts: dict[str, dict[str, Any]] = {}
        variants = [variant for variant in order if (model, variant) in records][:MOST_VARIANTS]
        for variant in variants:
            record = records[model, variant]
            cells = [*record.minutes, *([record.now] if record.now.at else [])]
            for chart, value in LINES.items():
                line = [_short(value(_until(cells, minute))) for minute in at]
                if any(one is not None for one in line):
                    charts.setdefault(chart, {})[variant] = line
        told[model] = {"variants": variants, "charts": charts}
    return {"at": list(at), "models": told}


def _until(cells: Sequence[Cell], minute: int) -> list[Cell]:
    """Those of the SPAN minutes that end with `minute`; none where nothing was counted in that one."""
    found: Iterable[Cell] = (cell for cell in reversed(cells) if minute - SPAN * MINUTE_S < cell.at <= minute)
    shown = list(islice(found, SPAN))[::-1]
    return shown if shown and shown[-1].at == minute else []


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
