"""Scales without a minimum: q4_0, q5_0, q8_0, iq4_nl (one for a block), q3_k, q6_k, iq4_xs (one for each group)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant, divided, half, largest_magnitude, nearest_int, sum_in_order
from tersor.kernels.reference.best.scale import (
    Nearest,
    error,
    fitted,
    inverse_of,
    ladder,
    products,
    settled,
    weights,
    whole,
)
from tersor.kernels.reference.families import k_symmetric, legacy, lookup
from tersor.kernels.reference.grids import AffineGrid, TableGrid, spread
from tersor.kernels.reference.kernel import Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["SEARCHES"]


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a format, and where to look for their scale.

    nearest  rounds to them
    tries    inverse scales to try, times the value of largest magnitude: levels that it may land on, of both signs
    refits   see `fitted`
    """

    nearest: Nearest
    tries: tuple[float, ...]
    refits: int

    def start(self, x: Tensor, w: Tensor) -> Tensor:
        """Least-squares scale of every group, 0 for a group of zeros."""
        _, peak = largest_magnitude(x)
        return fitted(x, w, self.nearest, tries=(divided(t, peak) for t in self.tries), refits=self.refits)


def _integers(zero: int, below: tuple[float, ...], above: tuple[float, ...], refits: int) -> Levels:
    """Levels -zero … zero - 1; the largest magnitude may land on -below, then on above."""
    return Levels(whole(-zero, zero - 1), (*(-level for level in below), *above), refits)


def _nearest_nonlinear(places: Tensor) -> Tensor:
    table = torch.tensor(lookup.NONLINEAR, dtype=torch.float32, device=places.device)
    return table[lookup.nearest_entry(places).long()]


THREE_BITS = _integers(4, ladder(0, 3.4, 0.4, 4), ladder(0, 2.7, 0.4, 4), 2)
FOUR_BITS = _integers(8, ladder(0, 6.8, 0.2, 10), ladder(0, 5.8, 0.2, 10), 1)
FIVE_BITS = _integers(16, ladder(0, 14.6, 0.3, 8), ladder(0, 13.6, 0.3, 8), 1)
SIX_BITS = _integers(32, ladder(0, 30.5, 0.5, 6), ladder(0, 29.5, 0.5, 6), 1)
NONLINEAR = Levels(_nearest_nonlinear, (*range(-137, -107, 3), *range(96, 121, 3)), 1)


# ------------------------------------------------------------------------------------------- one scale for a block


def search_single(blocks: Blocks, *, levels: Levels, bits: int) -> tuple[AffineGrid, Tensor]:
    """q4_0, q5_0."""
    w = weights(blocks)
    d = settled(blocks.x, w, levels.start(blocks.x, w), levels.nearest)
    zero = 1 << (bits - 1)
    codes = nearest_int(inverse_of(d) * blocks.x).clamp(-zero, zero - 1) + zero
    return legacy.symmetric_grid(d, bits), codes.T


def search_eight(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """q8_0: the largest magnitude becomes ±127, or the refit of that; the code -128 stays unused."""
    magnitude, _ = largest_magnitude(blocks.x)
    d = settled(blocks.x, weights(blocks), magnitude / constant(127, magnitude), whole(-127, 127))
    codes = nearest_int(inverse_of(d) * blocks.x).clamp(-127, 127) + 128
    return legacy.symmetric_grid(d, 8), codes.T


def search_nonlinear(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """iq4_nl."""
    w = weights(blocks)
    d = settled(blocks.x, w, NONLINEAR.start(blocks.x, w), NONLINEAR.nearest)
    return lookup.grid_of(d, lookup.NONLINEAR, lookup.WIDTH), lookup.nearest_entry(inverse_of(d) * blocks.x).T


# --------------------------------------------------------------------------------------------------- super-blocks


class State(NamedTuple):
    """Where a search stands: step float32 [blocks], whole sub-scales [groups, blocks], error [blocks]."""

    d: Tensor
    scales: Tensor
    error: Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of one format: x and w [width, groups, blocks]; sub-scales are whole, -end … end - 1."""

    x: Tensor
    w: Tensor
    nearest: Nearest
    end: int

    def searched(self, start: Tensor, rounds: int) -> State:
        """The best step and sub-scales, starting from scales [groups, blocks]: step, polish, refit."""
        best = state = self.polished(*self.placed(start))
        for _ in range(rounds):
            state = self.polished(self.refit(state), state.scales)
            better = state.error < best.error
            best = State(*(torch.where(better, new, old) for new, old in zip(state, best, strict=True)))
        return best

    def placed(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Step and sub-scales of scales: the one of largest magnitude becomes -end."""
        _, peak = largest_magnitude(scales)
        d = half(peak / constant(-self.end, peak))
        return d, whole(-self.end, self.end - 1)(scales * inverse_of(d))

    def polished(self, d: Tensor, scales: Tensor) -> State:
        """Every sub-scale or its neighbour above or below, whichever errs least; of equal ones the first."""
        best = least = torch.zeros_like(scales)
        for move in (0.0, 1.0, -1.0):
            moved = (scales + move).nan_to_num(-self.end).clamp(-self.end, self.end - 1)  # NaN: the scale overflowed
            trial = error(self.x, self.w, d * moved, self.nearest)
            better = trial < least if move else torch.ones_like(trial, dtype=torch.bool)
            best = torch.where(better, moved, best)
            least = torch.where(better, trial, least)
        return State(d, best, sum_in_order(least))

    def refit(self, state: State) -> Tensor:
        """The step as it is stored, by least squares over the super-block, levels and sub-scales given."""
        levels = self.nearest(inverse_of(state.d * state.scales) * self.x)
        sum_lx, sum_l2 = products(self.x, self.w, levels)
        squares = sum_in_order(state.scales * state.scales * sum_l2)
        d = sum_in_order(state.scales * sum_lx) / squares
        return torch.where(squares > 0, half(d), state.d)


def search_groups(blocks: Blocks, *, levels: Levels, width: int, end: int, rounds: int) -> State:
    """The best step and sub-scales for groups of `width` neighbours."""
    count = len(blocks.x) // width
    x, w = (t.reshape(count, width, -1).transpose(0, 1) for t in (blocks.x, weights(blocks)))
    return Groups(x, w, levels.nearest, end).searched(levels.start(x, w), rounds)


def search_super(blocks: Blocks, *, levels: Levels, zero: int, end: int, rounds: int) -> tuple[AffineGrid, Tensor]:
    """q3_k, q6_k."""
    state = search_groups(blocks, levels=levels, width=k_symmetric.WIDTH, end=end, rounds=rounds)
    grid = k_symmetric.grid_of(state.d, state.scales.T.to(torch.int32), zero)
    inverse = spread(inverse_of(grid.steps), k_symmetric.WIDTH)
    return grid, nearest_int(inverse * blocks.x.T).clamp(-zero, zero - 1) + zero


def search_nonlinear_super(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """iq4_xs."""
    state = search_groups(blocks, levels=NONLINEAR, width=lookup.WIDTH, end=32, rounds=1)
    grid = lookup.grid_of(state.d, lookup.NONLINEAR, lookup.WIDTH, state.scales.T.to(torch.int32))
    return grid, lookup.nearest_entry(spread(inverse_of(grid.steps), lookup.WIDTH) * blocks.x.T)


SEARCHES: dict[str, Callable[[Blocks], tuple[Any, Tensor]]] = {
    "q8_0": search_eight,
    "q4_0": partial(search_single, levels=FOUR_BITS, bits=4),
    "q5_0": partial(search_single, levels=FIVE_BITS, bits=5),
    "iq4_nl": search_nonlinear,
    "q3_k": partial(search_super, levels=THREE_BITS, zero=4, end=32, rounds=1),
    "q6_k": partial(search_super, levels=SIX_BITS, zero=32, end=128, rounds=2),
    "iq4_xs": search_nonlinear_super,
}
