"""Find the way in which a net runs fastest on this machine: all ways shortly, then the best of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from tersor.core.errors import EngineError
from tersor.evaluation.nets.running.engines import Clock, Way
from tersor.evaluation.nets.running.race import Entry, Sizes, race_ways
from tersor.evaluation.speed.deciding import leader, paired_ratio, undecided
from tersor.evaluation.speed.interleave import RaceProgress

__all__ = ["MORE", "Placed", "best_way", "until_clear"]

SHORT_ROUNDS = 5
MOST_FINALISTS, WITHIN = 6, 1.4
"""How many go on to the second race, and how far behind the best of the first."""
AT_ONCE = 6
"""Processes with an engine that are held together in the first race."""
MORE = 4
"""Times as many rounds are run at most where two are close,"""
MORE_S = 90.0
"""and for so many seconds at most."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One way, and how it did.

    ratio   of its time to that of the best, by medians of rounds side by side; None where it did not run
    agrees  whether its results may stand in for those of the first way that ran
    """

    entry: Entry
    ratio: float | None
    agrees: bool


def best_way(
    path: Path,
    ways: Sequence[Way],
    sizes: Sizes,
    *,
    rounds: int,
    clock: Clock = "wall",
    timeout_s: float = 600,
    progress: RaceProgress | None = None,
    agrees: Callable[[Entry, Entry], bool],
) -> list[Placed]:
    """Return every way, the fastest first.

    rounds  of the final race at least; up to MORE times as many where two are close
    agrees  whether an entry's results may stand in for those of another, the first of `ways` that ran; one whose
            results may not is left out of the final

    Raises EngineError where no way runs the net.
    """

    def raced(group: Sequence[Way], least: int, *, is_final: bool) -> list[Entry]:
        return race_ways(
            [(path, way) for way in group],
            sizes,
            rounds=least,
            clock=clock,
            timeout_s=timeout_s,
            progress=progress,
            most=MORE * least if is_final else least,
            goes_on=until_clear() if is_final else None,
        )

    first = _first(ways, lambda group: raced(group, SHORT_ROUNDS, is_final=False))
    ran = [entry for entry, _ in first if entry.blocks]
    if not ran:
        refusals = dict.fromkeys(entry.refusal for entry, _ in first)
        raise EngineError("; ".join(refusals) or f"{path}: no engine to try")
    order = sorted(((entry, time) for entry, time in first if entry.blocks), key=lambda each: each[1])
    fitting = [(entry, time) for entry, time in order if agrees(entry, ran[0])]
    finalists = [entry for entry, time in fitting[:MOST_FINALISTS] if time <= WITHIN * fitting[0][1]]
    final = [entry for entry in raced([each.way for each in finalists], rounds, is_final=True) if entry.blocks]
    best = final[leader([entry.blocks for entry in final])] if final else finalists[0]
    placed = [Placed(entry, paired_ratio(entry.blocks, best.blocks), agrees=True) for entry in final or [best]]
    placed.sort(key=lambda one: (one.entry is not best, one.ratio))
    names = {str(one.entry.way): one.ratio for one in placed}
    base = next(time / (names[str(best.way)] or 1.0) for entry, time in order if str(entry.way) == str(best.way))
    rest = [(entry, time) for entry, time in order if str(entry.way) not in names]
    placed += [Placed(entry, time / base, agrees(entry, ran[0])) for entry, time in rest]
    return placed + [Placed(entry, None, agrees=False) for entry, _ in first if not entry.blocks]


def until_clear(longest_s: float = MORE_S) -> Callable[[Sequence[Entry]], Sequence[Entry]]:
    """Return what tells a race which entries go on: all that may yet be the fastest, until the time is up."""
    end: float | None = None

    def goes_on(entries: Sequence[Entry]) -> Sequence[Entry]:
        nonlocal end
        end = monotonic() + longest_s if end is None else end
        if monotonic() > end:
            return ()
        return [entries[index] for index in undecided([entry.blocks for entry in entries])]

    return goes_on


def _first(ways: Sequence[Way], raced: Callable[[Sequence[Way]], list[Entry]]) -> list[tuple[Entry, float]]:
    """Race all ways in groups; return each with its time as a multiple of that of the first that ran.

    That one runs again in every group: the machine may be busier in one than in another.
    """
    found: list[tuple[Entry, float]] = []
    mark: Entry | None = None
    left = list(ways)
    while left:
        room = AT_ONCE if mark is None else AT_ONCE - 1
        group, left = left[:room], left[room:]
        entries = raced(group if mark is None else [mark.way, *group])
        beside = None if mark is None else entries.pop(0)
        if mark is None:
            mark = next((entry for entry in entries if entry.blocks), None)
        base = beside if beside is not None and beside.blocks else mark
        for entry in entries:
            held = bool(entry.blocks) and base is not None
            found.append((entry, paired_ratio(entry.blocks, base.blocks) if held and base is not None else 0.0))
    return found
