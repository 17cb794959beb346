"""Another view of the same values: shapes, axes, parts, repeats, borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tersor.graph.training.ops.arguments import Ints, Number, integers, interleaved
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = [
    "concat", "depth_to_space", "expand", "flatten", "pad", "reshape", "shape", "size", "slice_", "space_to_depth",
    "split", "squeeze", "tile", "transpose", "unsqueeze",
]  # fmt: skip


OPEN = 1 << 62
"""Beyond every end; torch warns of integers that are larger still, which stand for an open end."""


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Sizes of the axes, as integers beside the value."""
    return torch.tensor(list(x.shape[start:end]), dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    """How many values there are."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """Values in another shape; 0 keeps the size of that axis unless zeros are allowed, -1 takes the rest."""
    wanted = integers(shape)
    if not allowzero:
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Matrix of the axes before `axis` by the others."""
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Axes in another order; reversed where none is given."""
    return x.permute(list(perm) if perm is not None else list(range(x.ndim))[::-1])


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Value without axes of size one."""
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(integers(axes)))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """Value with new axes of size one, numbered as in the result."""
    places = integers(axes)
    for axis in sorted(axis % (x.ndim + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


def concat(*values: Tensor, axis: int) -> Tensor:
    """Values one behind the other along the axis."""
    return torch.cat(values, axis)


def split(
    x: Tensor, split: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> Sequence[Tensor]:
    """Parts of the value along the axis: of the sizes given, or as equal as can be with a smaller last one."""
    if split is not None:
        return torch.split(x, integers(split), axis)
    part = math.ceil(x.shape[axis] / (num_outputs or outputs))
    return torch.split(x, part, axis)


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """Every `steps`-th value from start to before end along each axis; steps may go backwards."""
    begin, stop = ([min(max(n, -OPEN), OPEN) for n in integers(bounds)] for bounds in (starts, ends))
    along = list(range(len(begin))) if axes is None else [axis % x.ndim for axis in integers(axes)]
    step = [1] * len(begin) if steps is None else integers(steps)
    for axis, first, last, stride in zip(along, begin, stop, step, strict=True):
        if stride > 0:
            x = x[(slice(None),) * axis + (slice(first, last, stride),)]
        else:  # torch has no backward slices
            places = torch.arange(*slice(first, last, stride).indices(x.shape[axis]), device=x.device)
            x = x.index_select(axis, places)
    return x


def expand(x: Tensor, shape: Ints) -> Tensor:
    """Value repeated along axes of size one; axes of the value that are larger than asked for stay."""
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(integers(shape))))


def tile(x: Tensor, repeats: Ints) -> Tensor:
    """Value repeated so often along every axis."""
    return x.repeat(integers(repeats))


def pad(
    x: Tensor, pads: Ints, value: Number | None = None, axes: Ints | None = None, *, mode: str = "constant"
) -> Tensor:
    """Value with borders, or, where a border is negative, cut: constant, or values of its own mirrored or repeated."""
    given = integers(pads)
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in integers(axes)]
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(along):
        begins[axis], ends[axis] = given[place], given[place + len(along)]
    if mode == "constant":
        return functional.pad(x, interleaved(begins, ends), value=float(value or 0))
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            x = x.index_select(axis, _mirrored(x.shape[axis], begin, end, mode, x.device))
    return x


def _mirrored(size: int, begin: int, end: int, mode: str, device: torch.device) -> Tensor:
    """Return which place of the axis each place of the padded axis repeats."""
    places = torch.arange(-begin, size + end, device=device)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    return size - 1 - (places % period - (size - 1)).abs()


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels spread over blocks of the plane; "DCR": the channel varies fastest, "CRD": slowest."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Blocks of the plane as channels."""
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)
