"""The kernels defined in torch: slow, on any device. Native code must equal them; they equal llama.cpp for "ggml"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tersor.core.errors import SchemeError, ShapeError
from tersor.kernels.layouts import layout
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference import best
from tersor.kernels.reference.families import floats, k_affine, k_symmetric, legacy, lookup, ternary
from tersor.kernels.reference.kernel import Blocks, Kernel, mean_square

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["BEST", "KERNELS", "decode", "encode", "fit", "pack", "unpack"]

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    floats.KERNELS | legacy.KERNELS | k_affine.KERNELS | k_symmetric.KERNELS | lookup.KERNELS | ternary.KERNELS
)

BEST: Mapping[str, Callable[[Blocks], tuple[Any, Tensor]]] = best.SEARCHES

AT_ONCE = 1 << 19  # weights encoded together: bounds memory, changes no result


def encode(name: str, weight: Tensor, importance: Tensor | None = None, search: str = "ggml") -> Tensor:
    """Encode a matrix: float32 [rows, columns] on any device to uint8 [rows, row_bytes] on the same.

    importance  float32 [columns] ≥ 0, None: no preference
    Raises ShapeError if the rows do not divide into blocks, SchemeError for an unknown name or search.
    """
    kernel, run = KERNELS[_known(name)], _search(name, search)
    rows, columns = weight.shape
    size = layout(name).row_bytes(columns)
    if weight.numel() == 0:
        return torch.empty((rows, size), dtype=torch.uint8, device=weight.device)
    step = max(1, AT_ONCE // columns)
    parts = []
    for start in range(0, rows, step):
        grid, codes = run(_blocks(kernel, weight[start : start + step], importance, layout(name).weights))
        parts.append(kernel.pack(grid, codes).reshape(-1, size))
    return torch.cat(parts)


def decode(name: str, data: Tensor, columns: int) -> Tensor:
    """Decode rows: uint8 [rows, row_bytes] to float32 [rows, columns] on the same device."""
    shape = layout(_known(name))
    if data.ndim != 2 or data.shape[1] != shape.row_bytes(columns):
        raise ShapeError(
            f"{name}: {columns} columns take [rows, {shape.row_bytes(columns)}] bytes, got {tuple(data.shape)}"
        )
    if data.numel() == 0:
        return torch.empty((len(data), columns), dtype=torch.float32, device=data.device)
    grid, codes = KERNELS[name].unpack(data.reshape(-1, shape.size))
    values: Tensor = grid.values(codes).reshape(len(data), columns)
    return values


def fit(name: str, block: Tensor, importance: Tensor | None = None, search: str = "ggml") -> Any:
    """Grid of one block per row, float32 [rows, block]; importance [block]."""
    run = _search(_known(name), search)
    return run(_blocks(KERNELS[name], block, importance, block.shape[1]))[0]


def pack(name: str, grid: Any, codes: Tensor) -> Tensor:
    """Bytes of one block per row, uint8 [rows, bytes], from its grid and codes int32 [rows, block]."""
    return KERNELS[_known(name)].pack(grid, codes)


def unpack(name: str, data: Tensor) -> tuple[Any, Tensor]:
    """Invert `pack`."""
    return KERNELS[_known(name)].unpack(data)


def _known(name: str) -> str:
    layout(name)
    return name


def _search(name: str, search: str) -> Callable[[Blocks], tuple[Any, Tensor]]:
    if search not in ("best", "ggml"):
        raise SchemeError(f"search must be 'best' or 'ggml', got {search!r}")
    return BEST[name] if search == "best" and not KERNELS[name].plain else KERNELS[name].search


def _blocks(kernel: Kernel, weight: Tensor, importance: Tensor | None, width: int) -> Blocks:
    rows, columns = weight.shape
    per_row = columns // width
    x = weight.reshape(rows * per_row, width).T.contiguous()
    if importance is None:
        return Blocks(x)
    shares = importance.expand(rows, columns).reshape(rows * per_row, width).T.contiguous()
    if not kernel.uses_row:
        return Blocks(x, shares)
    return Blocks(x, shares, mean_square(weight.T.contiguous()).repeat_interleave(per_row))
