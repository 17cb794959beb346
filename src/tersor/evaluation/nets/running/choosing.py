"""Find the way in which a net runs fastest on this machine: all ways shortly, then the best of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tersor.core.errors import EngineError
from tersor.evaluation.nets.running.engines import Clock, Way
from tersor.evaluation.nets.running.race import Entry, Sizes, race_ways, shortlist
from tersor.evaluation.speed.interleave import RaceProgress

__all__ = ["best_way"]

SHORT_ROUNDS = 3
MOST_FINALISTS, WITHIN = 4, 1.4
"""How many go on to the second race, and how far behind the best of the first."""
AT_ONCE = 6
"""Processes with an engine that are held together in the first race."""


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
) -> tuple[list[Entry], list[Entry]]:
    """Return the entries of the final race, the fastest first, and those of the first race.

    agrees  whether an entry's results may stand in for those of another, the first of `ways` that ran; one whose
            results may not is left out of the final

    Raises EngineError where no way runs the net.
    """
    first: list[Entry] = []
    for start in range(0, len(ways), AT_ONCE):
        places = [(path, way) for way in ways[start : start + AT_ONCE]]
        first += race_ways(places, sizes, rounds=SHORT_ROUNDS, clock=clock, timeout_s=timeout_s, progress=progress)
    ran = [entry for entry in first if entry.blocks]
    if not ran:
        raise EngineError("; ".join(dict.fromkeys(entry.refusal for entry in first)) or f"{path}: no engine to try")
    fitting = [entry for entry in ran if agrees(entry, ran[0])]
    finalists = shortlist(fitting, most=MOST_FINALISTS, within=WITHIN)
    final = race_ways(
        [(path, way) for way in finalists], sizes, rounds=rounds, clock=clock, timeout_s=timeout_s, progress=progress
    )
    return sorted((entry for entry in final if entry.blocks), key=lambda entry: entry.score) or ran[:1], first
