"""Encode and decode whole matrices: checks the input, then hands it to the native kernels or to the reference.

`TERSOR_KERNELS=native` or `reference` forces one of the two. Without the compiled module the reference (torch)
does the work, and one warning says so.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.kernels import reference
from tersor.kernels.layouts import LAYOUTS, layout
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["SEARCHES", "backend", "checked", "decode", "encode", "native", "tensor"]

SEARCHES = ("best", "ggml")
LEAST = 1e-6
"""Share of the mean importance that columns of none have in the search "best"; llama.cpp's takes what it is given."""

log = logging.getLogger(__name__)


class Native(Protocol):
    """What the compiled module offers."""

    def encode(
        self, name: str, x: Float32, importance: Float32 | None, search: str, threads: int, *, limit: float
    ) -> Bytes: ...
    def decode(self, name: str, data: Bytes, columns: int, threads: int) -> Float32: ...
    def isa(self) -> str: ...
    def formats(self) -> list[str]: ...


@cache
def _compiled() -> Native | str:
    """The compiled module, or why there is none."""
    try:
        return cast("Native", importlib.import_module("tersor.kernels._native"))
    except ImportError as error:
        return str(error)


@cache
def _warn_once(reason: str) -> None:
    log.warning("no native kernels (%s): encoding and decoding run in torch, many times slower", reason)


def native() -> Native | None:
    """The compiled kernels, None where the reference must do; MissingError if they are forced but absent."""
    wanted = os.environ.get("TERSOR_KERNELS", "")
    if wanted not in {"", "native", "reference"}:
        raise SchemeError(f"TERSOR_KERNELS must be 'native' or 'reference', got {wanted!r}")
    if wanted == "reference":
        return None
    module = _compiled()
    if not isinstance(module, str):
        return module
    if wanted == "native":
        raise MissingError(f"TERSOR_KERNELS=native, but the compiled kernels do not load ({module}): reinstall tersor")
    _warn_once(module)
    return None


def backend() -> str:
    """Which kernels run here, in words, and why."""
    wanted = os.environ.get("TERSOR_KERNELS", "")
    if wanted == "reference":
        return "reference (torch), forced by TERSOR_KERNELS"
    module = _compiled()
    if isinstance(module, str):
        return f"reference (torch), because the native kernels do not load: {module}"
    forced = ", forced by TERSOR_KERNELS" if wanted == "native" else ""
    return f"native ({module.isa()}){forced}"


def encode(
    name: str, weight: Float32, importance: Float32 | None = None, search: str = "best", threads: int = 0
) -> Bytes:
    """Encode a matrix: float32 [rows, columns] to uint8 [rows, row_bytes].

    importance  [columns] ≥ 0: weight of each column's squared error, None: no preference
    search      "best" or "ggml"
    threads     0: as many as there are cores; never changes the bytes
    Raises ShapeError, FormatError (NaN, Inf: names row and column), SchemeError (unknown name, value too large).
    """
    shape = layout(name)
    if search not in SEARCHES:
        raise SchemeError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    x, weights = _arrays(name, weight, importance)
    if search == "best" and weights is not None:
        weights = _felt(weights)
    size = shape.row_bytes(x.shape[1])
    if x.size == 0:
        return np.empty((len(x), size), np.uint8)
    module = native()
    if module is not None and name in module.formats():
        try:
            return module.encode(name, x, weights, search, threads, limit=shape.largest)
        except ValueError:
            _check_values(name, x, shape.largest)  # says where
            raise
    _check_values(name, x, shape.largest)
    shares = None if weights is None else tensor(weights)
    packed: Bytes = reference.encode(name, tensor(x), shares, search).numpy()
    return packed


def decode(name: str, data: Bytes, columns: int, threads: int = 0) -> Float32:
    """Decode rows: uint8 [rows, row_bytes] to float32 [rows, columns]; ShapeError if the bytes do not fit."""
    size = layout(name).row_bytes(columns)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != size:
        raise ShapeError(f"{name}: {columns} columns take uint8 [rows, {size}], got {data.dtype} {data.shape}")
    if data.size == 0:
        return np.empty((len(data), columns), np.float32)
    packed = np.ascontiguousarray(data)
    module = native()
    if module is not None and name in module.formats():
        return module.decode(name, packed, columns, threads)
    values: Float32 = reference.decode(name, tensor(packed), columns).numpy()
    return values


def checked(name: str, weight: Float32, importance: Float32 | None, largest: float) -> tuple[Float32, Float32 | None]:
    """Weight and importance as C-contiguous float32, or the error that says where and why they cannot be encoded."""
    x, weights = _arrays(name, weight, importance)
    if x.size:
        _check_values(name, x, largest)
    return x, weights


def _arrays(name: str, weight: Float32, importance: Float32 | None) -> tuple[Float32, Float32 | None]:
    if np.ndim(weight) != 2:
        raise ShapeError(f"{name} encodes a matrix [rows, columns], got shape {np.shape(weight)}")
    x = np.ascontiguousarray(weight, dtype=np.float32)
    return x, None if importance is None else _importance(importance, x.shape[1])


def _importance(importance: Float32, columns: int) -> Float32:
    if np.shape(importance) != (columns,):
        raise ShapeError(f"importance needs one value per column, [{columns}], got shape {np.shape(importance)}")
    values = np.ascontiguousarray(importance, dtype=np.float32)
    bad = np.flatnonzero(~((values >= 0) & (values < np.inf)))
    if bad.size:
        raise FormatError(f"importance of column {bad[0]} is {values[bad[0]]}: it must be finite and not negative")
    return values


def _felt(importance: Float32) -> Float32:
    """Importance in which no column costs nothing: one that calibration never saw would be stored as anything."""
    mean = float(importance.mean(dtype=np.float64))
    least = np.float32(max(LEAST * mean, float(np.finfo(np.float32).tiny)) if mean > 0 else 1.0)
    return np.where(importance > 0, importance, least)


def _check_values(name: str, x: Float32, largest: float) -> None:
    """Refuse NaN, Inf and what no scale of the format reaches; the common case reads `x` twice, allocates nothing."""
    low, high = float(x.min()), float(x.max())  # NaN wins in both
    if -largest <= low and high <= largest:
        return
    row, column = map(int, np.argwhere(~(np.abs(x.astype(np.float64)) <= largest))[0])
    value = float(x[row, column])
    if not np.isfinite(value):
        raise FormatError(f"the weight at row {row}, column {column} is {value}: no format stores it, mend the source")
    wider = "bf16" if abs(value) <= LAYOUTS["bf16"].largest else "f32"
    raise SchemeError(
        f"{name} stores magnitudes up to {largest:.4g}, but row {row}, column {column} is {value:.4g}: use {wider}"
    )


def tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """Share the memory of `array` with torch; read-only memory is copied, because torch wants it writable."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
