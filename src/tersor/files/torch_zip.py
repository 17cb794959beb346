"""Reading .bin / .pt / .pth checkpoints: a zip of one pickle and the raw storages, as torch.save writes.

The pickle is never executed, by torch neither: it is read as inert values, of which tensors are understood. The zip is
checked before, and storages stay in the file until rows are read from their place in it.

Source: torch/serialization.py and torch/_utils.py of torch 2.13; the names have been the same since torch 1.6.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from tersor.core.errors import FormatError
from tersor.files.closing import Closing
from tersor.files.dtypes import ITEM_BYTES, Numbers, decode
from tersor.files.pickles.inert import Call, Name, Persistent, inert
from tersor.files.positional import PositionalFile
from tersor.files.safetensors import TensorInfo, checked_rows

__all__ = ["MAX_PICKLE_BYTES", "TorchZipFile"]

MAX_PICKLE_BYTES = 32 * 2**20
MAX_DIRECTORY_BYTES = 16 * 2**20
MAX_AXES = 32
_MEMBER = b"PK\x03\x04"
_PICKLE = "data.pkl"

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_REBUILT = {
    "torch._utils._rebuild_tensor": 4, "torch._utils._rebuild_tensor_v2": 6, "torch._utils._rebuild_tensor_v3": 7,
}  # fmt: skip
"""What makes a tensor, and how many arguments it takes; one more tells of changes that the values still need."""
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
_WRAPPERS = ("state_dict", "model", "module")


@dataclass(frozen=True, slots=True)
class _Archive:
    """A checked zip: name → (place of the bytes, how many), of what lies beside its pickle and the pickle itself."""

    file: PositionalFile
    members: Mapping[str, tuple[int, int]]

    @property
    def path(self) -> Path:
        return self.file.path

    def read(self, name: str) -> bytes:
        return bytes(self.file.read(*self.members[name]))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: its storage in bytes of the file, its first element and steps in elements of the storage."""

    start: int
    first: int
    strides: tuple[int, ...]


class TorchZipFile(Closing):
    """One torch.save file, read a range of rows at a time.

    tensors    name → TensorInfo (its offset is that of the first element)
    Raises FormatError when the file is not a plain dictionary of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PositionalFile(path)
        try:
            archive = _opened(self._file)
            found = [_tensor(archive, name, value) for name, value in _values(archive).items()]
        except BaseException:
            self._file.close()
            raise
        self.tensors = {info.name: info for info, _ in found}
        self._places = {info.name: place for info, place in found}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        """Return rows `start` to `stop` of the leading axis: float32 for float types, else the integers."""
        info, place = self.tensors[name], self._places[name]
        first, last = checked_rows(name, info.shape, start, stop)
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        begin = place.first + (first * place.strides[0] if info.shape else 0)
        return self._gather(info.dtype, place.start, begin, shape, place.strides)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _gather(
        self, dtype: str, storage: int, first: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Numbers:
        """Read in one piece what lies close together, and axis by axis what is spread over the storage."""
        count, span, size = math.prod(shape), _span(shape, strides), ITEM_BYTES[dtype]
        if span <= 2 * count:
            values = decode(self._file.read(storage + first * size if count else 0, span * size), dtype)
            places = np.lib.stride_tricks.as_strided(values, shape, [stride * values.itemsize for stride in strides])
            return np.asarray(places, order="C")
        axis = max((axis for axis, length in enumerate(shape) if length > 1), key=lambda axis: strides[axis])
        inner, steps = shape[:axis] + shape[axis + 1 :], strides[:axis] + strides[axis + 1 :]
        parts = [self._gather(dtype, storage, first + n * strides[axis], inner, steps) for n in range(shape[axis])]
        return np.stack(parts, axis)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements of the storage from the first of a tensor to its last."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if math.prod(shape) else 0


def _opened(file: PositionalFile) -> _Archive:
    """Refuse what torch.save does not write: packed members, a huge directory or pickle, more bytes than the file."""
    if bytes(file.read(0, min(4, file.size))) != _MEMBER:
        raise FormatError(
            f"{file.path}: not a zip as torch.save writes since torch 1.6; load and save it again with a newer torch"
        )
    _check_directory(file)
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, OverflowError, RuntimeError) as error:
        raise FormatError(f"{file.path}: broken zip ({error})") from error
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise FormatError(f"{file.path}: packed zip members; torch.save stores them plainly")
    if sum(member.file_size for member in members) > file.size:
        raise FormatError(f"{file.path}: the zip members claim more bytes than the file has ({file.size})")
    pickles = [member for member in members if member.filename.endswith(_PICKLE)]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise FormatError(f"{file.path}: exactly one data.pkl of at most {MAX_PICKLE_BYTES} bytes is needed")
    if len({member.filename for member in members}) < len(members):
        raise FormatError(f"{file.path}: two zip members have the same name")
    folder = pickles[0].filename.removesuffix(_PICKLE)
    return _Archive(
        file,
        {
            member.filename.removeprefix(folder): (_start(file, member.header_offset), member.file_size)
            for member in members
        },
    )


def _check_directory(file: PositionalFile) -> None:
    """Bound the zip directory before Python builds an object for each of its entries."""
    tail = bytes(file.read(max(0, file.size - 65_557), min(file.size, 65_557)))
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        raise FormatError(f"{file.path}: broken zip (no end record): truncated")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    members = int.from_bytes(tail[end + 10 : end + 12], "little")
    if length != 0xFFFFFFFF and (length > MAX_DIRECTORY_BYTES or length > members * 2**16):
        raise FormatError(f"{file.path}: the zip directory claims {length} bytes for {members} members")
    wide = tail.rfind(b"PK\x06\x06", 0, end)
    if wide >= 0 and int.from_bytes(tail[wide + 40 : wide + 48], "little") > MAX_DIRECTORY_BYTES:
        raise FormatError(f"{file.path}: the zip directory is larger than {MAX_DIRECTORY_BYTES} bytes")


def _start(file: PositionalFile, header: int) -> int:
    """Where the bytes of a member begin: behind its own header, which pads them where the directory's does not."""
    content = file.read(header, 30)
    if content[:4] != _MEMBER:
        raise FormatError(f"{file.path}: broken zip (no member at byte {header})")
    return header + 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")


def _values(archive: _Archive) -> dict[str, object]:
    """Return the entries of the dictionary that the pickle holds, or of one that it wraps."""
    if "byteorder" in archive.members and archive.read("byteorder") != b"little":
        raise FormatError(f"{archive.path}: its numbers are not little-endian; save it again on an x86 or Arm machine")
    try:
        value = inert(archive.read(_PICKLE))
    except ValueError as error:
        raise _not_executed(archive.path, str(error)) from error
    for key in _WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if isinstance(value, Call | Name):
        raise _not_executed(archive.path, _named(value))
    if not isinstance(value, dict):
        raise FormatError(f"{archive.path}: holds a {type(value).__name__}; a dictionary of tensors is needed")
    odd = next((key for key, item in value.items() if not isinstance(key, str) or not isinstance(item, Call)), None)
    if odd is not None:
        raise FormatError(f"{archive.path}: the entry {odd!r:.120} is not a tensor with a name")
    return value


def _not_executed(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{path}: its pickle builds more than tensors, or is broken, and is not executed ({reason:.200})"
    )


def _named(value: object) -> str:
    """The name of what a pickle would import, or call."""
    while isinstance(value, Call):
        value = value.what
    return str(value) if isinstance(value, Name) else type(value).__name__


def _tensor(archive: _Archive, name: str, value: object) -> tuple[TensorInfo, _Place]:
    """Return what an entry is and where it lies."""
    made = _unwrapped(value)
    if made is None:
        raise _not_executed(archive.path, f"{name!r:.120} by {_named(value)}")
    place, lazy = f"{archive.path}: tensor {name!r:.120}", made.arguments[_REBUILT[_named(made)] :]
    storage, first, shape, strides = made.arguments[:4]
    key = storage.key if isinstance(storage, Persistent) else None
    if not isinstance(key, tuple) or len(key) < 3 or key[0] != "storage" or not isinstance(key[2], str) or any(lazy):
        raise FormatError(f"{place} is not plain values in a storage: that is not read")
    kind = _named(made.arguments[6] if _named(made).endswith("_v3") else key[1]).removeprefix("torch.")
    dtype = _DTYPES.get(_STORAGES.get(kind, kind))
    if dtype is None:
        raise FormatError(f"{place} is {kind:.40}: that is not read")
    if not isinstance(first, int) or not (_are_counts((first,)) and _are_counts(shape) and _are_counts(strides)):
        raise FormatError(f"{place} has a shape or steps that are not at most {MAX_AXES} whole numbers from 0 to 2^63")
    if len(shape) != len(strides):
        raise FormatError(f"{place} has {len(shape)} axes and {len(strides)} steps")
    size = ITEM_BYTES[dtype]
    nbytes = math.prod(shape) * size
    if nbytes > archive.file.size:
        raise FormatError(f"{place} claims {nbytes} bytes, the file has {archive.file.size}")
    start, held = archive.members.get(f"data/{key[2]}", (0, 0))
    if nbytes and (first + _span(shape, strides)) * size > held:
        raise FormatError(f"{place} reaches beyond its storage, data/{key[2]:.40} of {held} bytes")
    return TensorInfo(name, dtype, shape, start + first * size, nbytes), _Place(start, first, strides)


def _unwrapped(value: object) -> Call | None:
    """Return the call that would make the values of a tensor, a parameter or one of a subclass; None: no such call."""
    while isinstance(value, Call):
        name, arguments = _named(value), value.arguments
        if name in _REBUILT:
            return value if len(arguments) >= _REBUILT[name] else None
        if name in _PARAMETERS and arguments:
            value = arguments[0]
        elif name == _SUBCLASSED and len(arguments) > 2 and isinstance(arguments[2], tuple):
            value = Call(arguments[0], arguments[2])
        else:
            break
    return None


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
