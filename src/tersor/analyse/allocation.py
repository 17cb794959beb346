"""The mix of formats that costs least for its bytes, one format a tensor, for every number of bytes at once.

A knapsack with a choice for each tensor (Pisinger 1995): a table over bytes, filled tensor by tensor, holds the least
loss of every size. Bytes stand in it in steps, rounded up, so that no mix is ever larger than asked; what the
rounding leaves over is spent afterwards on the changes that help most.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError

__all__ = ["Frontier", "Mix", "Option", "pareto"]

STEPS = 40_000
"""Fewest steps of the table: over a model of 4 M parameters each is about 200 bytes."""
STEPS_A_TENSOR = 100
MOST_OPTIONS = 127
ROUNDING = 1e-9
"""Of sums of losses, relative."""


@dataclass(frozen=True, slots=True)
class Option:
    """A format that a tensor may take: its bytes, and what it costs (any unit that adds up)."""

    name: str
    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Mix:
    """One format for each tensor, with the sum of bytes and losses."""

    formats: Mapping[str, str]
    nbytes: int
    loss: float


def pareto(options: Sequence[Option]) -> list[Option]:
    """Return the options that no other beats, by rising bytes and falling loss.

    >>> [o.name for o in pareto([Option("b", 3, 0.3), Option("s", 1, 0.5), Option("g", 2, 0.1)])]
    ['s', 'g']
    """
    front: list[Option] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.loss)):
        if not front or option.loss < front[-1].loss:
            front.append(option)
    return front


@dataclass(eq=False)
class Frontier:
    """The best mixes of all sizes.

    options  tensor → what it may take; SchemeError for a tensor without any
    """

    options: Mapping[str, Sequence[Option]]
    fronts: dict[str, list[Option]] = field(init=False)
    _least: npt.NDArray[np.float64] = field(init=False, repr=False)
    _taken: list[npt.NDArray[np.int8]] = field(init=False, repr=False)
    _step: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        empty = [name for name, options in self.options.items() if not options]
        if empty:
            raise SchemeError(f"{empty[0]} has no format to choose from")
        if max(map(len, self.options.values()), default=0) > MOST_OPTIONS:
            raise SchemeError(f"a tensor may choose from {MOST_OPTIONS} formats at most")
        self.fronts = {name: pareto(options) for name, options in self.options.items()}
        steps = max(STEPS, STEPS_A_TENSOR * len(self.fronts))
        self._step = max(1, -(-(self.largest - self.smallest) // steps))
        self._fill_table()

    @property
    def smallest(self) -> int:
        """Bytes of the smallest mix."""
        return sum(front[0].nbytes for front in self.fronts.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest mix that is worth its bytes."""
        return sum(front[-1].nbytes for front in self.fronts.values())

    def at(self, nbytes: int) -> Mix:
        """Return the best mix of at most `nbytes`; SchemeError where even the smallest is larger."""
        if nbytes < self.smallest:
            raise SchemeError(
                f"{nbytes:,} bytes are asked for, and the smallest mix of these formats takes {self.smallest:,}"
            )
        place = min((nbytes - self.smallest) // self._step, len(self._least) - 1)
        return self._filled(self._traced(int(np.argmin(self._least[: place + 1]))), nbytes)

    def least(self, loss: float) -> Mix:
        """Return the smallest mix whose loss is at most `loss`; SchemeError where none is as good."""
        good = np.flatnonzero(self._least <= loss * (1 + ROUNDING))
        if not len(good):
            raise SchemeError(f"a loss of {loss:.3g} is asked for, and the best mix has {self._least.min():.3g}")
        return self._mix(self._traced(int(good[0])))

    def neighbours(self, mix: Mix, nbytes: int, count: int, slack: float) -> list[Mix]:
        """Return up to `count` mixes of which two tensors have changed, one up and one down, the best first.

        nbytes  that they may take
        slack   their loss may be so many times that of `mix`
        """
        rises, falls = self._moves(mix, upwards=True), self._moves(mix, upwards=False)
        if not rises or not falls:
            return []
        tensors, sizes, losses = (np.array(column) for column in list(zip(*falls, strict=True))[:3])
        found: list[tuple[float, int, int, int]] = []  # loss, bytes, and numbers of a rise and a fall
        most = slack * mix.loss
        for number, (tensor, size, loss, *_) in enumerate(rises):
            bytes_of, loss_of = mix.nbytes + size + sizes, mix.loss + loss + losses
            fits = np.flatnonzero((tensors != tensor) & (bytes_of <= nbytes) & (loss_of <= most))
            found += [(float(loss_of[fall]), int(bytes_of[fall]), number, int(fall)) for fall in fits]
            if len(found) >= count:  # what is no better than these is not even written down
                found = heapq.nsmallest(count, found)
                most = min(most, found[-1][0])
        names = list(self.fronts)
        return [
            self.changed(mix, {names[rises[up][0]]: rises[up][3], names[falls[down][0]]: falls[down][3]})
            for _, _, up, down in heapq.nsmallest(count, found)
        ]

    def _moves(self, mix: Mix, *, upwards: bool) -> list[tuple[int, int, float, int]]:
        """Number of a tensor, what its change adds to bytes and loss, and its place on its front, for every change."""
        found = []
        for number, (name, front) in enumerate(self.fronts.items()):
            at = _place(front, mix.formats[name])
            for place in range(at + 1, len(front)) if upwards else range(at):
                one = front[place]
                found.append((number, one.nbytes - front[at].nbytes, one.loss - front[at].loss, place))
        return found

    def changed(self, mix: Mix, moved: Mapping[str, int]) -> Mix:
        """Return a mix with other options: tensor → place on its front."""
        nbytes, loss, formats = mix.nbytes, mix.loss, dict(mix.formats)
        for name, place in moved.items():
            front = self.fronts[name]
            before, after = front[_place(front, formats[name])], front[place]
            nbytes, loss, formats[name] = (
                nbytes + after.nbytes - before.nbytes,
                loss + after.loss - before.loss,
                after.name,
            )
        return Mix(formats, nbytes, loss)

    def _fill_table(self) -> None:
        count = sum(self._units(front)[-1] for front in self.fronts.values()) + 1
        self._least, self._taken = np.full(count, np.inf), []
        self._least[0] = 0.0
        for front in self.fronts.values():
            made, taken = np.full(count, np.inf), np.zeros(count, np.int8)
            for index, (option, units) in enumerate(zip(front, self._units(front), strict=True)):
                found = np.full(count, np.inf)
                found[units:] = self._least[: count - units] + option.loss
                better = found < made
                made[better], taken[better] = found[better], index
            self._least = made
            self._taken.append(taken)

    def _units(self, front: Sequence[Option]) -> list[int]:
        """Steps of the table that each option takes beyond the tensor's smallest."""
        return [-(-(option.nbytes - front[0].nbytes) // self._step) for option in front]

    def _traced(self, place: int) -> dict[str, int]:
        """The option of each tensor that makes up an entry of the table."""
        chosen: dict[str, int] = {}
        for name, taken in zip(reversed(self.fronts), reversed(self._taken), strict=True):
            chosen[name] = int(taken[place])
            place -= self._units(self.fronts[name])[chosen[name]]
        return {name: chosen[name] for name in self.fronts}

    def _filled(self, chosen: dict[str, int], nbytes: int) -> Mix:
        """Spend what is left on the single changes that help most."""
        left = nbytes - self._mix(chosen).nbytes
        while True:
            best, gain = None, 0.0
            for name, index in chosen.items():
                front = self.fronts[name]
                for other in range(index + 1, len(front)):
                    if front[other].nbytes - front[index].nbytes > left:
                        break
                    if front[index].loss - front[other].loss > gain:
                        best, gain = (name, other), front[index].loss - front[other].loss
            if best is None:
                return self._mix(chosen)
            name, other = best
            left -= self.fronts[name][other].nbytes - self.fronts[name][chosen[name]].nbytes
            chosen[name] = other

    def _mix(self, chosen: Mapping[str, int]) -> Mix:
        taken = {name: self.fronts[name][index] for name, index in chosen.items()}
        formats = {name: option.name for name, option in taken.items()}
        return Mix(
            formats, sum(option.nbytes for option in taken.values()), sum(option.loss for option in taken.values())
        )


def _place(front: Sequence[Option], name: str) -> int:
    return next(index for index, option in enumerate(front) if option.name == name)
