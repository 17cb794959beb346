"""Run nets in several ways in turn, A B C A B C, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, MissingError
from tersor.evaluation.nets.running.engines import Clock, Loaded, Way
from tersor.evaluation.speed.interleave import SETTLE_S, RaceProgress
from tersor.targets.memory import footprint

__all__ = ["Entry", "Sizes", "likeness_db", "race_ways"]

BLOCK_S = 0.04
"""What a way runs before it is the next one's turn: long enough that the caches are its own again."""
LEAST_REPEATS, MOST_REPEATS = 3, 200
WARMUPS = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """What free axes of the inputs are: the first, and any other."""

    batch: int = 1
    length: int = 128


@dataclass(slots=True)
class Entry:
    """One way in the race, and what was found out about it.

    refusal      why it did not run, "" where it did
    seconds      of every run that counts
    blocks       the shortest run of each round: the one that least was disturbed in
    peak_memory  bytes of the whole process; None where the system does not tell
    """

    path: Path
    way: Way
    refusal: str = ""
    version: str = ""
    load_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    output: Float32 | None = None
    inputs: dict[str, list[int]] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The lower quartile over rounds of the shortest run, in seconds; infinite where it did not run.

        What else the machine does only ever adds time: the median of a busy machine says more of that than of the net.
        """
        return float(np.quantile(self.blocks, 0.25)) if self.blocks else float("inf")


def race_ways(
    places: Sequence[tuple[Path, Way]],
    sizes: Sizes,
    *,
    rounds: int,
    clock: Clock = "wall",
    timeout_s: float = 600,
    progress: RaceProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
    most: int = 0,
    goes_on: Callable[[Sequence[Entry]], Sequence[Entry]] | None = None,
) -> list[Entry]:
    """Load every net its way, warm up, time them in turn for `rounds` rounds; no process is left behind.

    most, goes_on  after `rounds` rounds those go on that `goes_on` names, asked after each round, up to `most` in all

    Another one begins each round, for what runs may leave threads that spin to the next. A way that refuses its net or
    is not installed has the reason in `refusal`.
    """
    entries = [Entry(path, way) for path, way in places]
    total, done = len(places) * (1 + rounds), 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    with ExitStack() as stack:
        running: list[tuple[Entry, Loaded, int]] = []
        for entry in entries:
            try:
                loaded = Loaded(entry.path, entry.way, batch=sizes.batch, length=sizes.length, timeout_s=timeout_s)
            except (EngineError, MissingError) as error:
                entry.refusal = str(error)
                done += rounds
            else:
                stack.callback(loaded.close)
                repeats = _warmed(entry, loaded)
                running.append((entry, loaded, repeats))
            tell(f"loading into {entry.way.engine}")
        racing = list(running)
        for number in range(max(rounds, most)):
            if number >= rounds:
                going = () if goes_on is None else goes_on([entry for entry, _, _ in racing])
                racing = [row for row in racing if any(row[0] is one for one in going)]
                total += len(racing)
            if not racing:
                break
            turn = number % len(racing)
            for entry, loaded, repeats in (*racing[turn:], *racing[:turn]):
                sleep(SETTLE_S)
                took = loaded.seconds(repeats, clock)
                entry.seconds += took
                entry.blocks.append(min(took))
                tell(f"round {number + 1}, {entry.way.engine}")
        for entry, loaded, _ in running:
            found = footprint(loaded.pid) if loaded.pid is not None else None
            entry.peak_memory = None if found is None else found.peak
    return entries


def _warmed(entry: Entry, loaded: Loaded) -> int:
    """Fill in what is known once it is loaded, warm it up, and return how many runs make a block."""
    entry.version, entry.load_s, entry.inputs = loaded.version, loaded.load_s, loaded.inputs
    entry.output = loaded.output()
    once = min(loaded.seconds(WARMUPS))
    return max(LEAST_REPEATS, min(MOST_REPEATS, round(BLOCK_S / max(once, 1e-9))))


def likeness_db(subject: Float32, reference: Float32) -> float | None:
    """Return how far two outputs are apart, 10·log10(Σ reference² / Σ difference²); None where they are equal.

    >>> import numpy as np
    >>> round(likeness_db(np.float32([1.0, 2.1]), np.float32([1.0, 2.0])) or 0, 1)
    27.0
    """
    noise = float(np.sum((subject.astype(np.float64) - reference) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return None if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
