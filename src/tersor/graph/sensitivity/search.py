"""The fewest operators that go back to float so that a net loses no more than it may.

Operators are ranked by what the net gains without each (`operators`); the shortest part of that ranking that suffices
is found by bisection, and then every operator in it is put back on integers that is not needed after all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.operators import Sensitivity
from tersor.graph.sensitivity.rebuild import with_left

__all__ = ["Returned", "Trial", "return_to_float"]

Measure = Callable[[QuantizedNet], float]
"""What a net loses, in the unit of the limit; smaller is better."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One net that was measured: which operators were in float, and what it lost."""

    left: tuple[str, ...]
    drop: float


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """The net that was chosen.

    ranking  what each operator costs, the most sensitive first; empty where nothing had to go back
    left     operators that went back to float, the most sensitive first
    drop     what the net loses now
    meets    whether that is no more than was allowed: with all in float it may still not be
    trials   everything that was measured, in order
    """

    net: QuantizedNet
    ranking: tuple[Sensitivity, ...]
    left: tuple[str, ...]
    drop: float
    meets: bool
    trials: tuple[Trial, ...]


def return_to_float(
    quantized: QuantizedNet, rank: Callable[[], Sequence[Sensitivity]], measure: Measure, max_drop: float
) -> Returned:
    """Return the net with the fewest operators of a ranking in float that loses at most `max_drop` by `measure`.

    rank  makes the ranking; called only where the net loses more than that
    """
    base = set(quantized.recipe.left)
    trials: list[Trial] = []

    def lost(left: Sequence[str]) -> float:
        known = next((trial.drop for trial in trials if set(trial.left) == set(left)), None)
        if known is None:
            known = measure(with_left(quantized, base | set(left)) if left else quantized)
            trials.append(Trial(tuple(left), known))
        return known

    ranking: tuple[Sensitivity, ...] = ()
    chosen: list[str] = []
    if lost([]) > max_drop:
        ranking = tuple(rank())
        order = [row.node for row in ranking]
        chosen = order[: _shortest(order, lambda count: lost(order[:count]) <= max_drop)]
        for name in reversed(chosen[:-1]):
            fewer = [other for other in chosen if other != name]
            if lost(fewer) <= max_drop:
                chosen = fewer
    drop = lost(chosen)
    net = with_left(quantized, base | set(chosen)) if chosen else quantized
    return Returned(net, ranking, tuple(chosen), drop, drop <= max_drop, tuple(trials))


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
