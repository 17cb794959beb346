"""Writing safetensors as a stream: the header first, from known shapes, then the bytes of each tensor as they arrive.

Source: the format description of the safetensors project. Tensors lie in order of falling element size, so that every
one of them is aligned; a file is complete only when all of them are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError, ShapeError, UnsupportedError
from tersor.files.dtypes import INTEGERS, ITEM_BYTES

__all__ = ["SafetensorsWriter", "StoredTensor", "encode"]

ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor to be: `dtype` as safetensors calls it, `shape` in numpy order."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsWriter:
    """Writes one file; the tensors may come in any order, the parts of one tensor from first to last.

    file      opened for writing, empty; the caller's to close
    metadata  text pairs of `__metadata__`; transformers wants {"format": "pt"}
    Raises FormatError for two tensors of one name.
    """

    def __init__(self, file: BinaryIO, tensors: Sequence[StoredTensor], metadata: Mapping[str, str]) -> None:
        self._file = file
        ordered = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
        entries: dict[str, object] = {"__metadata__": dict(metadata)}
        self._places: dict[str, tuple[int, int]] = {}
        self._done = dict.fromkeys((tensor.name for tensor in tensors), 0)
        offset = 0
        for tensor in ordered:
            if tensor.name in entries:
                raise FormatError(f"two tensors are called {tensor.name!r}; names in a safetensors file are unique")
            end = offset + tensor.nbytes
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
            self._places[tensor.name] = (offset, end)
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self._start = 8 + len(text)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(self._start + offset)

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """Append `data`, little-endian elements of the tensor `name`; ShapeError where they are more than it has."""
        start, end = self._places[name]
        begin = start + self._done[name]
        if begin + data.nbytes > end:
            raise ShapeError(f"{name}: {data.nbytes} bytes arrived, {end - begin} were to come")
        self._file.seek(self._start + begin)
        self._file.write(np.ascontiguousarray(data).data.cast("B") if data.size else b"")
        self._done[name] += data.nbytes

    def finish(self) -> None:
        """Check that every tensor is complete; ShapeError names the first that is not."""
        for name, (start, end) in self._places.items():
            if self._done[name] != end - start:
                raise ShapeError(f"{name}: {end - start - self._done[name]} bytes of {end - start} never arrived")
        self._file.flush()


def encode(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return numbers as their file holds them; the inverse of `tersor.files.dtypes.decode`, which lost nothing of them.

    >>> encode(np.array([1.0], np.float32), "BF16").view(np.uint8).tolist()
    [128, 63]
    """
    if dtype in INTEGERS:
        return values.astype(np.dtype(INTEGERS[dtype]).newbyteorder("<"), copy=False)
    if dtype == "BF16":
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype("<u2")
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    if dtype not in kinds:
        raise UnsupportedError(f"{dtype} cannot be copied; float types F64, F32, F16, BF16 and integers can")
    return values.astype(kinds[dtype], copy=False)
