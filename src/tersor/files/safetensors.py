"""Reading safetensors: eight bytes of header length, a JSON header, then the tensors back to back.

Source: the format description of the safetensors project. Differs from its reader: rows are read from the file when
asked for, and never mapped into memory.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import FormatError, ShapeError
from tersor.files.closing import Closing
from tersor.files.dtypes import ITEM_BYTES, Numbers, decode
from tersor.files.positional import PositionalFile

__all__ = ["MAX_HEADER_BYTES", "MAX_TENSORS", "SafetensorsFile", "TensorInfo", "checked_rows", "refuse_crowded_json"]

MAX_HEADER_BYTES = 32 * 2**20
"""A longer header is refused: 90 bytes describe a tensor, so this is far beyond any real file."""

MAX_TENSORS = 65_536
"""Tensors in one file; keeps the memory that a hostile header can take below 200 MB."""

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `shape` in numpy order, `offset` and `nbytes` in bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile(Closing):
    """One .safetensors file, checked when opened, read a range of rows at a time.

    tensors    name → TensorInfo, in file order
    metadata   the text pairs of `__metadata__`
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PositionalFile(path)
        try:
            self.tensors, self.metadata = _parse(self._file)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        """Return rows `start` to `stop` of the leading axis: float32 for float types, else the integers."""
        info = self.tensors[name]
        first, last = checked_rows(name, info.shape, start, stop)
        rows = info.shape[0] if info.shape else 1
        row_bytes = info.nbytes // rows if rows else 0
        data = self._file.read(info.offset + first * row_bytes, (last - first) * row_bytes)
        return decode(data, info.dtype).reshape((last - first, *info.shape[1:]) if info.shape else ())

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def checked_rows(name: str, shape: tuple[int, ...], start: int, stop: int | None) -> tuple[int, int]:
    """Return (start, stop) with the default filled in; ShapeError when they leave the tensor."""
    rows = shape[0] if shape else 1
    last = rows if stop is None else stop
    if not 0 <= start <= last <= rows:
        raise ShapeError(f"{name} {shape}: rows {start} to {last} asked for, it has {rows}")
    return start, last


def refuse_crowded_json(text: bytes | bytearray, path: Path) -> None:
    """Refuse JSON with more objects, lists or strings than any real header, before parsing costs memory."""
    for mark, limit in ((b"{", MAX_TENSORS + 2), (b"[", 2 * MAX_TENSORS), (b'"', 16 * MAX_TENSORS)):
        count = text.count(mark)
        if count > limit:
            raise FormatError(f"{path}: the header holds {count} of {mark.decode()!r}, at most {limit} are read")


def _parse(file: PositionalFile) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{file.path}: the header claims {length} bytes, at most {MAX_HEADER_BYTES} are read")
    text = file.read(8, length)
    refuse_crowded_json(text, file.path)
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except FormatError as error:
        raise FormatError(f"{file.path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.path}: the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise FormatError(f"{file.path}: the header is a {type(header).__name__}, an object is needed")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{file.path}: __metadata__ must map text to text")
    start = 8 + length
    infos = [_checked_entry(file.path, name, entry, start) for name, entry in header.items()]
    _check_layout(file.path, infos, start, file.size)
    return {info.name: info for info in infos}, metadata


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise FormatError(f"the header names {twice!r:.120} twice")
    return made


def _refuse_constant(name: str) -> object:
    raise FormatError(f"the header holds {name}, which is not JSON")


def _checked_entry(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    place = f"{path}: tensor {name!r:.120}"
    if not isinstance(entry, Mapping) or set(entry) != _ENTRY_KEYS:
        raise FormatError(f"{place}: exactly the keys dtype, shape and data_offsets are needed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"{place}: dtype {dtype!r:.40} is not one of {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or len(shape) > 32:
        raise FormatError(f"{place}: the shape must be a list of whole numbers from 0 to 2^63 - 1, at most 32 of them")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{place}: data_offsets must be two rising whole numbers, got {offsets!r:.80}")
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(f"{place}: {dtype} {shape!r:.80} takes {nbytes} bytes, data_offsets give {offsets!r:.80}")
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], nbytes)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(path: Path, infos: list[TensorInfo], start: int, size: int) -> None:
    """Tensors must fill the file from the end of the header to its last byte, without gap or overlap."""
    expected = start
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != expected:
            fault = "overlaps the tensor before it" if info.offset < expected else "leaves a gap before it"
            raise FormatError(f"{path}: tensor {info.name!r:.120} at byte {info.offset} {fault} ({expected} was due)")
        expected += info.nbytes
    if expected != size:
        fault = "truncated" if expected > size else "followed by bytes that belong to no tensor"
        raise FormatError(f"{path}: {fault}: the tensors end at byte {expected}, the file has {size}")
