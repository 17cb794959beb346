"""The fewest operators that get more bits, or go back to float, so that a net loses no more than it may.

Operators are ranked by what the net gains without each (`operators`); the shortest part of that ranking that suffices
is found by bisection, and then every operator in it is put back that is not needed after all. Weights of fewer than 8
bits get 8 first; only where all of them do not suffice do operators go back to float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.operators import Sensitivity
from tersor.graph.sensitivity.rebuild import with_left

__all__ = ["Returned", "Trial", "return_to_float"]

Measure = Callable[[QuantizedNet], float]
"""What a net loses, in the unit of the limit; smaller is better."""
WIDE_BITS = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """One net that was measured: which operators were in float, which had 8 bits, and what it lost."""

    left: tuple[str, ...]
    drop: float
    wide: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """The net that was chosen.

    ranking  what each operator costs, the most sensitive first; empty where nothing had to go back
    left     operators that went back to float, the most sensitive first
    drop     what the net loses now
    meets    whether that is no more than was allowed: with all in float it may still not be
    trials   everything that was measured, in order
    wide     operators whose weights got 8 bits, the most sensitive first
    """

    net: QuantizedNet
    ranking: tuple[Sensitivity, ...]
    left: tuple[str, ...]
    drop: float
    meets: bool
    trials: tuple[Trial, ...]
    wide: tuple[str, ...] = ()


def return_to_float(
    quantized: QuantizedNet, rank: Callable[[], Sequence[Sensitivity]], measure: Measure, max_drop: float
) -> Returned:
    """Return the net with the fewest operators of a ranking in float, or else at 8 bits, that loses at most `max_drop`.

    rank     makes the ranking; called only where the net loses more than that
    measure  what is lost
    """
    search = _Search(quantized, measure, max_drop)
    ranking: tuple[Sensitivity, ...] = ()
    left: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    if not search.suffices():
        ranking = tuple(rank())
        order = tuple(row.node for row in ranking)
        narrow = tuple(name for name in order if name in quantized.weights)
        if quantized.recipe.bits < WIDE_BITS and search.suffices(wide=narrow):
            wide = search.fewest(narrow, lambda names: search.suffices(wide=names))
        else:
            wide = narrow if quantized.recipe.bits < WIDE_BITS else ()
            left = search.fewest(order, lambda names: search.suffices(names, wide))
            wide = tuple(name for name in wide if name not in left)
            if wide and search.suffices(left, wide):
                wide = search.fewest(wide, lambda names: search.suffices(left, names))
    drop = search.lost(left, wide)
    return Returned(search.net(left, wide), ranking, left, drop, drop <= max_drop, tuple(search.trials), wide)


@dataclass
class _Search:
    quantized: QuantizedNet
    measure: Measure
    max_drop: float
    trials: list[Trial] = field(default_factory=list)

    def net(self, left: Sequence[str], wide: Sequence[str]) -> QuantizedNet:
        recipe = self.quantized.recipe
        if not left and not wide:
            return self.quantized
        return with_left(self.quantized, {*recipe.left, *left}, wide={*recipe.wide, *wide})

    def lost(self, left: Sequence[str] = (), wide: Sequence[str] = ()) -> float:
        """What is lost so; measured once."""
        wide = tuple(name for name in wide if name not in set(left))
        for trial in self.trials:
            if (set(trial.left), set(trial.wide)) == (set(left), set(wide)):
                return trial.drop
        found = self.measure(self.net(left, wide))
        self.trials.append(Trial(tuple(left), found, wide))
        return found

    def suffices(self, left: Sequence[str] = (), wide: Sequence[str] = ()) -> bool:
        return self.lost(left, wide) <= self.max_drop

    def fewest(self, order: tuple[str, ...], enough: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
        """Return the fewest of an order that are enough, all where these are not."""
        chosen = order[: _shortest(order, lambda count: enough(order[:count]))]
        for name in reversed(chosen[:-1]):
            fewer = tuple(other for other in chosen if other != name)
            if enough(fewer):
                chosen = fewer
        return chosen


def _shortest(order: Sequence[str], suffices: Callable[[int], bool]) -> int:
    """Return the smallest count that suffices, as if more were never worse; all where none does."""
    low, high = 0, len(order)
    if not suffices(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if suffices(middle):
            high = middle
        else:
            low = middle
    return high
