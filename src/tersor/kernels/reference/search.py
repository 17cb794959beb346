"""The four searches for scales that llama.cpp's encoders are made of, over many groups at once.

Source: facts of ggml's quantizers (make_qx, make_q3, make_qkx2/3, make_qp), bit-identical to them.
All tensors are element-major, [n, groups]; a result per group is [groups].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import (
    divided,
    extreme,
    largest_magnitude,
    nearest_int,
    single,
    sum_in_order,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Steps", "descend_symmetric", "search_affine", "search_nonnegative", "search_symmetric"]

TINY = single(1e-15)  # groups whose largest magnitude is below this count as all zero


def search_symmetric(x: Tensor, w: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and codes of a symmetric grid, from 19 trial scales each refitted by weighted least squares.

    x, w    [n, groups] values and their weights
    levels  the codes are 0 … 2·levels-1, code c means (c - levels)·scale
    Returns scale [groups] (0 and codes 0 where all is zero) and codes int32 [n, groups].
    """
    magnitude, signed = largest_magnitude(x)
    tries = [0, *(i for i in range(-9, 10) if i)]
    tenth = torch.tensor(tries, dtype=torch.float32, device=x.device) * single(0.1)
    inverse = -(tenth + levels)[:, None] / signed  # [tries, groups]
    wx = w * x
    sums = []
    for trial in inverse:
        codes = nearest_int(trial * x).clamp(-levels, levels - 1)
        sums.append(sum_in_order(torch.stack((wx * codes, w * codes * codes), dim=1)))
    sum_lx, sum_l2 = sums[0]
    scale = torch.where(sum_l2 != 0, sum_lx / sum_l2, torch.zeros_like(sum_lx))
    best = scale * sum_lx
    chosen = inverse[0]
    for trial, (sum_lx, sum_l2) in zip(inverse[1:], sums[1:], strict=True):
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        scale = torch.where(better, sum_lx / sum_l2, scale)
        best = torch.where(better, scale * sum_lx, best)
        chosen = torch.where(better, trial, chosen)
    codes = nearest_int(chosen * x).clamp(-levels, levels - 1) + levels
    empty = magnitude < TINY
    return torch.where(empty, torch.zeros_like(scale), scale), torch.where(empty, torch.zeros_like(codes), codes)


def descend_symmetric(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and codes of a symmetric grid by coordinate descent on the codes, weights x²; otherwise as above."""
    magnitude, signed = largest_magnitude(x)
    inverse = divided(-levels, signed)
    codes = nearest_int(inverse * x).clamp(-levels, levels - 1)
    w = x * x
    wx = w * x
    sum_lx, sum_l2 = sum_in_order(torch.stack((wx * codes, w * codes * codes), dim=1))
    codes = codes.clone()
    for _ in range(5):
        for i in range(len(x)):
            old = codes[i]
            without_lx = sum_lx - wx[i] * old
            without_l2 = sum_l2 - w[i] * old * old
            new = nearest_int(x[i] * without_l2 / without_lx).clamp(-levels, levels - 1)
            new_lx = without_lx + wx[i] * new
            new_l2 = without_l2 + w[i] * new * new
            better = (without_lx > 0) & (new != old) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = torch.where(better, new, old)
            sum_lx = torch.where(better, new_lx, sum_lx)
            sum_l2 = torch.where(better, new_l2, sum_l2)
    zero = torch.zeros_like(sum_lx)
    scale = torch.where(sum_l2 > 0, sum_lx / sum_l2, zero)
    empty = magnitude < TINY
    return torch.where(empty, zero, scale), torch.where(empty, torch.zeros_like(codes), codes + levels)


@dataclass(frozen=True, slots=True)
class Steps:
    """Trial inverse scales (start + width·i + top code)/range for i = 0 … count."""

    start: float
    width: float
    count: int
    absolute: bool = False  # compare sums of |error| instead of error²


def search_affine(x: Tensor, w: Tensor, top: int, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, minimum and codes of an affine grid: code c in 0 … top means c·scale - minimum, minimum ≥ 0.

    Each trial rounds with its inverse scale from the minimum found so far, then refits (scale, minimum) by weighted
    least squares; a later trial therefore starts from the best minimum, not from the first one.
    Returns scale [groups], minimum [groups], codes int32 [n, groups].
    """
    low, high = extreme(x)
    low = torch.where(low > 0, torch.zeros_like(low), low)
    flat = high <= low
    wx = w * x
    sum_w = w[0].clone()
    sum_x = wx[0].clone()
    for weight, term in zip(w[1:], wx[1:], strict=True):
        sum_w += weight
        sum_x += term
    inverse = divided(top, high - low)
    scale = divided(1, inverse)
    codes = nearest_int(inverse * (x - low)).clamp(0, top)
    best = _error(x, w, scale, low, codes, absolute=steps.absolute)
    minimum = low
    for i in range(steps.count + 1):
        trial = single(single(steps.start) + single(single(steps.width) * i))
        inverse = divided(single(trial + top), high - minimum)
        tried = nearest_int(inverse * (x - minimum)).clamp(0, top)
        wl = w * tried
        sum_l, sum_l2, sum_xl = sum_in_order(torch.stack((wl, wl * tried, wl * x), dim=1))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = new_minimum > 0
        new_minimum = torch.where(positive, torch.zeros_like(low), new_minimum)
        new_scale = torch.where(positive, sum_xl / sum_l2, new_scale)
        error = _error(x, w, new_scale, new_minimum, tried, absolute=steps.absolute)
        better = (determinant > 0) & (error < best)
        best = torch.where(better, error, best)
        scale = torch.where(better, new_scale, scale)
        minimum = torch.where(better, new_minimum, minimum)
        codes = torch.where(better, tried, codes)
    zero = torch.zeros_like(codes)
    return (
        torch.where(flat, torch.zeros_like(scale), scale),
        -torch.where(flat, low, minimum),
        torch.where(flat, zero, codes),
    )


def _error(x: Tensor, w: Tensor, scale: Tensor, minimum: Tensor, codes: Tensor, *, absolute: bool) -> Tensor:
    """Weighted sum of squared or absolute errors of the codes, [groups]."""
    error = scale * codes + minimum - x
    return sum_in_order(w * (error.abs() if absolute else error * error))


def search_nonnegative(x: Tensor, w: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and codes of a grid from zero up, code c in 0 … top means c·scale: quantizes the scales themselves.

    Nine trial scales, then coordinate descent on the codes.
    """
    high = torch.zeros_like(x[0])
    for value in x:
        high = torch.where(high > value, high, value)
    inverse = divided(top, high)
    best = _plain_error(x, w, divided(1, inverse), nearest_int(inverse * x) & 0xFF)
    for i in (-4, -3, -2, -1, 1, 2, 3, 4):
        trial = divided(single(single(single(0.1) * i) + top), high)
        error = _plain_error(x, w, divided(1, trial), nearest_int(trial * x).clamp(max=top))
        better = error < best
        best = torch.where(better, error, best)
        inverse = torch.where(better, trial, inverse)
    codes = nearest_int(inverse * x).clamp(max=top)
    wx = w * x
    sum_lx, sum_l2 = sum_in_order(torch.stack((wx * codes, w * codes * codes), dim=1))
    codes = codes & 0xFF
    for _ in range(5):
        for i in range(len(x)):
            old = codes[i]
            without_lx = sum_lx - wx[i] * old
            without_l2 = sum_l2 - w[i] * old * old
            new = nearest_int(x[i] * without_l2 / without_lx).clamp(max=top)
            new_lx = without_lx + wx[i] * new
            new_l2 = without_l2 + w[i] * new * new
            better = (without_lx > 0) & (without_l2 > 0) & (new != old)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = torch.where(better, new & 0xFF, old)
            sum_lx = torch.where(better, new_lx, sum_lx)
            sum_l2 = torch.where(better, new_l2, sum_l2)
    zero = torch.zeros_like(sum_lx)
    scale = torch.where(sum_l2 > 0, sum_lx / sum_l2, zero)
    empty = high < TINY
    return torch.where(empty, zero, scale), torch.where(empty, torch.zeros_like(codes), codes)


def _plain_error(x: Tensor, w: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
    error = x - scale * codes
    return sum_in_order(w * error * error)
