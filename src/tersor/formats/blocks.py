"""Whole matrices through a format's own fit, round and pack: for the formats that have no kernel of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.format import Rules
from tersor.kernels import codec
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.grids import TableGrid

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["TINIEST", "decode", "encode", "table_grid", "usable_scale"]

TINIEST = 2.0**-126
"""Smallest scale: below it scales would be subnormal, and what is divided by them could overflow."""


def encode(
    name: str,
    rules: Rules,
    weight: Float32,
    *,
    block: int,
    largest: float,
    importance: Float32 | None,
    search: str,
) -> Bytes:
    """Fit, round and pack all blocks of a matrix that is not empty; `block` 0: every row is one block.

    The rules are given the importance as [blocks of a row, width]: it repeats from row to row.
    """
    if search not in codec.SEARCHES:
        raise SchemeError(f"search must be one of {', '.join(codec.SEARCHES)}, got {search!r}")
    x, weights = codec.checked(name, weight, importance, largest)
    rows, columns = x.shape
    width = block or columns
    if columns % width:
        raise ShapeError(f"{columns} columns do not divide into blocks of {width} ({name})")
    blocks = codec.tensor(x).reshape(-1, width)
    shares = None if weights is None else codec.tensor(weights).reshape(-1, width)
    grid: Any = rules.fit(blocks, shares, search)
    packed: Bytes = rules.pack(grid, grid.round_all(blocks)).reshape(rows, -1).numpy()
    return packed


def decode(rules: Rules, data: Bytes, columns: int, *, block: int) -> Float32:
    """Unpack and evaluate all blocks of packed rows whose sizes the caller has checked; `block` as in `encode`."""
    width = block or columns
    blocks = codec.tensor(np.ascontiguousarray(data)).reshape(len(data) * columns // width, -1)
    grid, codes = rules.unpack(blocks, width)
    values: Float32 = grid.values(codes).reshape(len(data), columns).numpy()
    return values


def table_grid(scale: Tensor, levels: Sequence[float], width: int) -> TableGrid:
    """The grid of blocks in which a code means scale · level, one scale a block."""
    table = torch.tensor(levels, dtype=torch.float32, device=scale.device)
    ones = torch.ones((len(scale), 1), dtype=torch.int32, device=scale.device)
    return TableGrid(scale, ones, table, width)


def usable_scale(wanted: Tensor) -> Tensor:
    """Scales that can be divided by: 1 where there is nothing to scale, never below TINIEST."""
    return wanted.clamp(min=TINIEST).where(wanted > 0, wanted.new_ones(()))
