"""mxfp4, whose scales are powers of two, and tq1_0, tq2_0, whose only levels are -1, 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import divided, half, largest_magnitude, single, sum_in_order
from tersor.kernels.reference.best.scale import fitted, inverse_of, weights, whole
from tersor.kernels.reference.families import lookup, ternary
from tersor.kernels.reference.grids import AffineGrid, TableGrid
from tersor.kernels.reference.kernel import Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["SEARCHES"]

SHARES = tuple(single(1 - single(single(0.1) * k)) for k in range(8))  # of the largest magnitude, tried as scales


def search_microscaling(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """mxfp4: the exponent that ggml takes or its neighbour above or below, whichever errs least."""
    w = weights(blocks)
    start = best = lookup.exponent_of(blocks.x)
    least = torch.zeros_like(blocks.x[0])
    for move in (0, 1, -1):
        exponent = (start + move).clamp(0, 254)
        grid = lookup.grid_of(lookup.power_of(exponent), lookup.FOUR_BIT_FLOATS, lookup.WIDTH)
        difference = grid.values(grid.round_all(blocks.x.T)).T - blocks.x
        error = sum_in_order(w * (difference * difference))
        better = error < least if move else torch.ones_like(error, dtype=torch.bool)
        best = torch.where(better, exponent, best)
        least = torch.where(better, error, least)
    grid = lookup.grid_of(lookup.power_of(best), lookup.FOUR_BIT_FLOATS, lookup.WIDTH)
    return grid, grid.round_all(blocks.x.T)


def search_ternary(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """tq1_0, tq2_0: the least-squares scale for thresholds that are shares of the largest magnitude."""
    top, _ = largest_magnitude(blocks.x)
    tries = (divided(1, top * share) for share in SHARES)
    scale = fitted(blocks.x, weights(blocks), whole(-1, 1), tries=tries, refits=2, start=top)
    places = blocks.x * inverse_of(scale)
    places = torch.where(places.abs() < 2.0**126, places, torch.zeros_like(places))
    signs = torch.where(places.abs() >= 0.5, torch.sign(places), torch.zeros_like(places))
    return ternary.grid_of(half(scale), 3), (signs.to(torch.int32) + 1).T


SEARCHES: dict[str, Callable[[Blocks], tuple[Any, Tensor]]] = {
    "mxfp4": search_microscaling,
    "tq1_0": search_ternary,
    "tq2_0": search_ternary,
}
