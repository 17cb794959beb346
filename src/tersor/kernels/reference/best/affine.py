"""Scales with a minimum: q4_1, q5_1 with one pair for a block, q2_k, q4_k, q5_k with a pair for each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant, divided, extreme, half, nearest_int, sum_in_order
from tersor.kernels.reference.best.scale import error, inverse_of, ladder, weights, whole
from tersor.kernels.reference.families import legacy
from tersor.kernels.reference.families.k_affine import Q2, Q4, Q5, Kind, grid_of
from tersor.kernels.reference.grids import AffineGrid, spread
from tersor.kernels.reference.kernel import Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["SEARCHES"]

ALIKE = 1e-5
"""Of Σ w · Σ w·code²: codes that vary less than that, as they are weighed, fix no minimum."""
MOVES = ((0, 0), (1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # of (scale, minimum) on the lattice


@dataclass(frozen=True, slots=True)
class Trials:
    """Where to look for the scale of a group.

    top     largest code
    tries   inverse scales to try, times the range of the group
    refits  as often afterwards the codes of the best scale and minimum so far are tried
    free    the minimum may be positive
    """

    top: int
    tries: tuple[float, ...]
    refits: int
    free: bool


class Line(NamedTuple):
    """x ≈ scale · code + minimum, and how much of Σ w·x² that explains; each […groups]."""

    scale: Tensor
    minimum: Tensor
    gain: Tensor


class Sums(NamedTuple):
    """Sums over the elements of a group, with the weights w; the first two do not depend on codes."""

    w: Tensor
    x: Tensor
    code: Tensor
    code2: Tensor
    code_x: Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups to fit: x and w [width, …groups], their sums over the width […groups]."""

    x: Tensor
    w: Tensor
    sum_w: Tensor
    sum_x: Tensor

    @classmethod
    def of(cls, x: Tensor, w: Tensor) -> Groups:
        """Groups with their sums."""
        return cls(x, w, sum_in_order(w), sum_in_order(w * x))

    def sums(self, inverse: Tensor, minimum: Tensor, top: int) -> Sums:
        """Sums for the codes nearest to (x - minimum) · inverse."""
        codes = whole(0, top)(inverse * (self.x - minimum))
        wl = self.w * codes
        return Sums(self.sum_w, self.sum_x, *sum_in_order(torch.stack((wl, wl * codes, wl * self.x), dim=1)))

    def error(self, scale: Tensor, minimum: Tensor, top: int) -> Tensor:
        """Σ w·(scale·code + minimum - x)² with the nearest codes."""
        return error(self.x - minimum, self.w, scale, whole(0, top))


def _solved(sums: Sums, anchor: Tensor, *, free: bool) -> tuple[Line, Tensor]:
    """The least-squares line for given codes, and where there is one with a positive scale.

    Where all codes are alike it is the best of those with the minimum `anchor`, which the codes were counted from.
    """
    determinant = sums.w * sums.code2 - sums.code * sums.code
    scale = (sums.w * sums.code_x - sums.x * sums.code) / determinant
    minimum = (sums.code2 * sums.x - sums.code * sums.code_x) / determinant
    if not free:
        above = minimum > 0
        scale = torch.where(above, sums.code_x / sums.code2, scale)
        minimum = torch.where(above, torch.zeros_like(minimum), minimum)
    gain = scale * sums.code_x + minimum * sums.x
    varied = determinant > ALIKE * (sums.w * sums.code2)
    rest = sums.code_x - anchor * sums.code
    anchored = rest / sums.code2
    scale = torch.where(varied, scale, anchored)
    minimum = torch.where(varied, minimum, anchor)
    gain = torch.where(varied, gain, anchored * rest + anchor * (2 * sums.x - anchor * sums.w))
    return Line(scale, minimum, gain), (sums.code2 > 0) & (scale > 0)


def _started(groups: Groups, trials: Trials) -> Line:
    """The line of the largest gain among those of all trials; a scale of 0 if none beats the minimum alone."""
    low, high = extreme(groups.x)
    anchor = low if trials.free else torch.where(low > 0, torch.zeros_like(low), low)
    gain = anchor * (2 * groups.sum_x - anchor * groups.sum_w)
    best = Line(torch.zeros_like(anchor), anchor, gain)
    for trial in (*trials.tries, *[None] * trials.refits):
        start = best.minimum if trial is None else anchor
        inverse = divided(1, best.scale) if trial is None else divided(trial, high - anchor)
        line, valid = _solved(groups.sums(inverse, start, trials.top), start, free=trials.free)
        better = valid & (line.gain > best.gain)
        best = Line(*(torch.where(better, new, old) for new, old in zip(line, best, strict=True)))
    return best


# --------------------------------------------------------------------------------------- one scale, one minimum


def search_single(blocks: Blocks, *, trials: Trials, bits: int) -> tuple[AffineGrid, Tensor]:
    """q4_1, q5_1: the best line as binary16 stores it, or its refit if that errs less."""
    groups = Groups.of(blocks.x, weights(blocks))
    start = _started(groups, trials)
    d, minimum = half(start.scale), half(start.minimum)
    refit, valid = _solved(groups.sums(inverse_of(d), minimum, trials.top), minimum, free=True)
    again, lower = half(refit.scale), half(refit.minimum)
    better = valid & (groups.error(again, lower, trials.top) < groups.error(d, minimum, trials.top))
    d, minimum = torch.where(better, again, d), torch.where(better, lower, minimum)
    codes = nearest_int(inverse_of(d) * (blocks.x - minimum)).clamp(0, trials.top)
    return legacy.affine_grid(d, minimum, bits), codes.T


# -------------------------------------------------------------------------------------------------- super-blocks


class State(NamedTuple):
    """Where a search stands: x ≈ d·scales·code - dmin·minima.

    d, dmin, error  float32 [blocks]
    scales, minima  whole numbers as float32 [groups, blocks]
    """

    d: Tensor
    dmin: Tensor
    scales: Tensor
    minima: Tensor
    error: Tensor


def search_super(blocks: Blocks, *, trials: Trials, kind: Kind, rounds: int) -> tuple[AffineGrid, Tensor]:
    """q2_k, q4_k, q5_k: start, step, polish, then refit and polish again; the state of the least error wins."""
    count = len(blocks.x) // kind.width
    groups = Groups.of(*(t.reshape(count, kind.width, -1).transpose(0, 1) for t in (blocks.x, weights(blocks))))
    start = _started(groups, trials)
    d, scales = _placed(start.scale, kind.scale_top)
    dmin, minima = _placed(-start.minimum, kind.scale_top)
    best = state = _polished(groups, State(d, dmin, scales, minima, torch.zeros_like(d)), kind)
    for _ in range(rounds):
        state = _polished(groups, _refit(groups, state, kind), kind)
        better = state.error < best.error
        best = State(*(torch.where(better, new, old) for new, old in zip(state, best, strict=True)))
    grid = grid_of(best.d, best.dmin, best.scales.T.to(torch.int32), best.minima.T.to(torch.int32), kind)
    places = spread(inverse_of(grid.steps), kind.width) * (blocks.x.T + spread(grid.offsets, kind.width))
    return grid, nearest_int(places).clamp(0, kind.top)


def _placed(values: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Step and whole multiples 0 … end for scales or minima [groups, blocks]: the largest becomes `end`."""
    high = torch.zeros_like(values[0])
    for value in values:
        high = torch.where(value > high, value, high)
    step = half(high / constant(end, high))
    return step, whole(0, end)(values * inverse_of(step))


def _polished(groups: Groups, state: State, kind: Kind) -> State:
    """Every (scale, minimum) or its best neighbour on the lattice; of equally good ones the first."""
    scales, minima = state.scales, state.minima
    least = torch.zeros_like(scales)
    for k, (up, down) in enumerate(MOVES):
        scale = (state.scales + up).nan_to_num(0.0).clamp(0, kind.scale_top)  # NaN: the scale overflowed
        minimum = (state.minima + down).nan_to_num(0.0).clamp(0, kind.scale_top)
        trial = groups.error(state.d * scale, -(state.dmin * minimum), kind.top)
        better = trial < least if k else torch.ones_like(trial, dtype=torch.bool)
        scales = torch.where(better, scale, scales)
        minima = torch.where(better, minimum, minima)
        least = torch.where(better, trial, least)
    return State(state.d, state.dmin, scales, minima, sum_in_order(least))


def _refit(groups: Groups, state: State, kind: Kind) -> State:
    """d and dmin by least squares over the whole super-block, codes and multiples given, as they are stored.

    Where the system is singular dmin stays, where its answer makes no sense both do.
    """
    sc, mn = state.scales, state.minima
    sums = groups.sums(inverse_of(state.d * sc), -(state.dmin * mn), kind.top)
    terms = (sc * sc * sums.code2, sc * mn * sums.code, mn * mn * sums.w, sc * sums.code_x, mn * sums.x)
    aa, ab, bb, ax, bx = sum_in_order(torch.stack(terms, dim=1))
    determinant = aa * bb - ab * ab
    regular = determinant > 1e-5 * aa * bb
    d = torch.where(regular, (bb * ax - ab * bx) / determinant, (ax + state.dmin * ab) / aa)
    dmin = torch.where(regular, (ab * ax - aa * bx) / determinant, state.dmin)
    valid = (aa > 0) & (d > 0) & (dmin >= 0)
    return state._replace(d=torch.where(valid, half(d), state.d), dmin=torch.where(valid, half(dmin), state.dmin))


SEARCHES: dict[str, Callable[[Blocks], tuple[Any, Tensor]]] = {
    "q4_1": partial(search_single, trials=Trials(15, ladder(15, -1.0, 0.2, 14), 2, free=True), bits=4),
    "q5_1": partial(search_single, trials=Trials(31, ladder(31, -1.2, 0.2, 14), 3, free=True), bits=5),
    "q2_k": partial(search_super, trials=Trials(3, ladder(3, -0.8, 0.2, 14), 2, free=False), kind=Q2, rounds=3),
    "q4_k": partial(search_super, trials=Trials(15, ladder(15, -1.0, 0.25, 12), 2, free=False), kind=Q4, rounds=2),
    "q5_k": partial(search_super, trials=Trials(31, ladder(31, -0.75, 0.25, 8), 2, free=False), kind=Q5, rounds=2),
}
