"""Codes and scales refined in turn: coordinate descent on tr((W - Q) H (W - Q)ᵀ).

codes   one column after the other goes to the value that is best given all others, the one nearest to
        t_j = w_j + Σ_{k≠j} (w_k - q_k) H_kj / H_jj
scales  block by block, every group gets the whole multiples of the block's scale (and minimum) that are best given all
        else, then the block its scale, as it is stored. A change is kept where the error falls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tersor.kernels.feedback import State, propagate, settle
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.matrix import MatrixGrid, upright
from tersor.methods.solving.scales import Scales

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["coupling", "descended", "refined", "rescaled"]

LAZY = 256  # columns after which all the rest hears of scales that moved


def refined(
    weight: Tensor, grid: MatrixGrid, codes: Tensor, hessian: Tensor, *, rounds: int = 2, threads: int = 0
) -> tuple[MatrixGrid, Tensor]:
    """Scales and codes after as many rounds of both.

    weight   float32 [rows, columns], what the values should come close to
    codes    int32 [rows, columns]
    hessian  float32 [columns, columns], damped
    """
    if rounds == 0 or grid.lattice is None:
        return grid, codes
    matrix = coupling(hessian)
    for _ in range(rounds):
        grid = rescaled(weight, grid, codes, hessian)
        codes = descended(weight, grid, codes, matrix, threads=threads)
    return grid, codes


def coupling(hessian: Tensor) -> Tensor:
    """H_kj / H_jj with a zero diagonal, [in, in]: how an error of column k moves the best value of column j."""
    matrix = hessian / hessian.diagonal()
    return matrix.fill_diagonal_(0).contiguous()


def descended(weight: Tensor, grid: MatrixGrid, codes: Tensor, matrix: Tensor, *, threads: int = 0) -> Tensor:
    """One sweep over all codes, int32 [rows, columns], on a grid that is fixed; `matrix` is the coupling."""
    points = grid.points()
    if points is None:
        return codes
    x = upright(weight)
    error = upright(weight - grid.values(codes))
    state = State(x.clone(), x, error, error.clone(), torch.zeros_like(x, dtype=torch.uint8))
    propagate(state, matrix, 0, len(x), 0, threads=threads)
    settle(state, points, matrix, 0, len(x), threads=threads)
    return state.codes[:, : len(weight)].T.to(torch.int32)


def rescaled(weight: Tensor, grid: MatrixGrid, codes: Tensor, hessian: Tensor) -> MatrixGrid:
    """The same codes on better scales; formats whose scales are not free (floats, powers of two) stay as they are."""
    scales = Scales.of(grid)
    if scales is None:
        return grid
    error = (weight - grid.values(codes)).T.contiguous()
    levels, gradient = scales.levels(codes), hessian @ error
    span = max(scales.width, LAZY // scales.width * scales.width)
    for start in range(0, grid.columns, span):
        stop = min(grid.columns, start + span)
        descent = _Descent(scales, start, hessian[start:stop, start:stop], levels[start:stop], gradient[start:stop])
        for block in range(start // scales.width, stop // scales.width):
            descent.refit(block)
        gradient[stop:] -= hessian[stop:, start:stop] @ descent.change
    return replace(grid, grid=scales.grid())


class _Descent:
    """The scales of neighbouring blocks, moved one after the other; columns count from `start`.

    Moving values by δ · direction changes the squared error by δ² curvature - 2 δ slope.

    hessian   [columns, columns] of these columns
    levels    [columns, rows]
    gradient  [columns, rows] of half the squared error, by the errors; kept up to date
    change    [columns, rows], by how much values moved
    """

    def __init__(self, scales: Scales, start: int, hessian: Tensor, levels: Tensor, gradient: Tensor) -> None:
        self.scales, self.start, self.hessian, self.levels, self.gradient = scales, start, hessian, levels, gradient
        self.change = torch.zeros_like(levels)

    def refit(self, block: int) -> None:
        """The multiples of every group of a block, then its scale, then the scale of its minima."""
        scales = self.scales
        limits = scales.limits
        if limits is not None:
            for group in range(block * scales.groups, (block + 1) * scales.groups):
                first = group * scales.group_width - self.start
                columns = slice(first, first + scales.group_width)
                fit = self._step if scales.minima is None else self._pair
                near = self.hessian[columns, columns]
                self._moved(columns, fit(self.levels[columns], near, self.gradient[columns], group, limits))
        first = block * scales.width - self.start
        columns = slice(first, first + scales.width)
        direction = self.levels[columns] * scales.spread(scales.multiples, block)
        scales.d[:, block] = self._scale(columns, direction, scales.d[:, block])
        if scales.minima is not None:
            direction = -scales.spread(scales.minima, block)
            scales.dmin[:, block] = self._scale(columns, direction, scales.dmin[:, block])

    def _moved(self, columns: slice, change: Tensor) -> None:
        self.change[columns] += change
        self.gradient -= self.hessian[:, columns] @ change

    def _step(self, level: Tensor, near: Tensor, slopes: Tensor, group: int, limits: tuple[int, int]) -> Tensor:
        """The best multiple of one group; returns how its values move."""
        scales = self.scales
        d, old = scales.d[:, group // scales.groups], scales.multiples[:, group]
        slope, curvature = (level * slopes).sum(0), (level * (near @ level)).sum(0)
        new = (old + slope / curvature / d).round().nan_to_num(0, 0, 0).clamp(*limits)
        step = (new - old) * d
        better = 2 * step * slope > step * step * curvature
        scales.multiples[:, group] = torch.where(better, new, old)
        return torch.where(better, step, torch.zeros_like(step)) * level

    def _pair(self, level: Tensor, near: Tensor, slopes: Tensor, group: int, limits: tuple[int, int]) -> Tensor:
        """The best multiples of scale and minimum of one group: those around the best scale, each with its minimum."""
        scales = self.scales
        assert scales.minima is not None, "a pair without minima"
        block = group // scales.groups
        d, dmin = scales.d[:, block], scales.dmin[:, block]
        old, lower = scales.multiples[:, group], scales.minima[:, group]
        by_level, by_one = near @ level, near.sum(1)
        aa, ab, bb = (level * by_level).sum(0), by_level.sum(0), by_one.sum()
        ga, gb = (level * slopes).sum(0), slopes.sum(0)
        ideal = old + (bb * ga - ab * gb) / (aa * bb - ab * ab) / d
        gain = torch.zeros_like(ga)
        scale, minimum = old, lower
        for trial in (ideal.floor(), ideal.ceil(), old):
            new = trial.nan_to_num(0, 0, 0).clamp(*limits)
            step = (new - old) * d
            under = (lower - (gb - ab * step) / bb / dmin).round().nan_to_num(0, 0, 0).clamp(*limits)
            shift = (lower - under) * dmin
            won = 2 * (step * ga + shift * gb) - (step * step * aa + 2 * step * shift * ab + shift * shift * bb)
            better = won > gain
            gain = torch.where(better, won, gain)
            scale, minimum = torch.where(better, new, scale), torch.where(better, under, minimum)
        change = (scale - old) * d * level + (lower - minimum) * dmin
        scales.multiples[:, group], scales.minima[:, group] = scale, minimum
        return change

    def _scale(self, columns: slice, direction: Tensor, old: Tensor) -> Tensor:
        """The best stored factor of a direction."""
        slope = (direction * self.gradient[columns]).sum(0)
        curvature = (direction * (self.hessian[columns, columns] @ direction)).sum(0)
        new = self.scales.stored(torch.where(curvature > 0, old + slope / curvature, old), old)
        step = new - old
        better = 2 * step * slope > step * step * curvature
        self._moved(columns, torch.where(better, step, torch.zeros_like(step)) * direction)
        return torch.where(better, new, old)
