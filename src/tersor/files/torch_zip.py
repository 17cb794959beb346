"""Reading .bin / .pt / .pth checkpoints: a zip of one pickle and the raw storages, as torch.save writes.

The pickle is never executed freely: torch.load(weights_only=True) builds tensors and plain containers only. The zip is
checked before torch sees it, and storages stay in the file (mmap=True) until rows are read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.core.errors import FormatError, MissingError
from tersor.files.dtypes import Numbers
from tersor.files.positional import PositionalFile
from tersor.files.safetensors import TensorInfo, checked_rows

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_PICKLE_BYTES", "TorchZipFile"]

MAX_PICKLE_BYTES = 32 * 2**20
MAX_MEMBERS = 65_536
MAX_DIRECTORY_BYTES = 16 * 2**20

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
_WRAPPERS = ("state_dict", "model", "module")


class TorchZipFile:
    """One torch.save file, read a range of rows at a time.

    tensors    name → TensorInfo (its offset is 0: torch knows the place)
    Raises MissingError without torch, FormatError when the file is not a plain dictionary of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_zip(path)
        self._values = _load(path)
        size = path.stat().st_size
        self.tensors = {name: _info(path, name, value, size) for name, value in self._values.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        """Return rows `start` to `stop` of the leading axis: float32 for float types, else the integers."""
        info = self.tensors[name]
        first, last = checked_rows(name, info.shape, start, stop)
        value = self._values[name].detach()
        rows = value[first:last] if info.shape else value
        array: Numbers = (rows.float() if rows.is_floating_point() else rows).contiguous().numpy()
        return array.copy() if array.base is not None else array

    def close(self) -> None:
        """Release the file as soon as no tensor of it is left."""
        self._values = {}


def _check_zip(path: Path) -> None:
    """Refuse what torch.save does not write: packed members, a huge directory or pickle, more bytes than the file."""
    with PositionalFile(path) as file:
        size, start = file.size, bytes(file.read(0, min(4, file.size)))
        if start != b"PK\x03\x04":
            raise FormatError(
                f"{path}: not a zip as torch.save writes since torch 1.6; load and save it again with a newer torch"
            )
        _check_directory(file)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, OverflowError, RuntimeError) as error:
        raise FormatError(f"{path}: broken zip ({error})") from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise FormatError(f"{path}: packed zip members; torch.save stores them plainly")
    if sum(member.file_size for member in members) > size:
        raise FormatError(f"{path}: the zip members claim more bytes than the file has ({size})")
    pickles = [member for member in members if member.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise FormatError(f"{path}: exactly one data.pkl of at most {MAX_PICKLE_BYTES} bytes is needed")


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


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        import torch  # noqa: PLC0415 - optional dependency
    except ImportError as error:
        raise MissingError(
            f"{path}: .bin and .pt files are read by torch, which is not installed: pip install 'tersor[torch]'"
        ) from error
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise FormatError(
            f"{path}: its pickle builds more than tensors, or is broken, and is not executed ({reason:.200})"
        ) from error
    except Exception as error:  # whatever a broken file makes torch raise: this is the edge
        raise FormatError(f"{path}: torch cannot read it ({type(error).__name__}: {error!s:.200})") from error
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping):
        raise FormatError(f"{path}: holds a {type(value).__name__}; a dictionary of tensors is needed")
    odd = next((key for key, item in value.items() if not isinstance(key, str) or not torch.is_tensor(item)), None)
    if odd is not None:
        raise FormatError(f"{path}: the entry {odd!r:.120} is not a tensor with a name")
    return dict(value)


def _info(path: Path, name: str, value: torch.Tensor, size: int) -> TensorInfo:
    dtype = _DTYPES.get(str(value.dtype).removeprefix("torch."))
    if dtype is None or value.layout.__repr__() != "torch.strided" or value.is_quantized:
        raise FormatError(f"{path}: tensor {name!r:.120} is {value.dtype}, {value.layout}: that is not read")
    nbytes = value.numel() * value.element_size()
    if nbytes > size:
        raise FormatError(f"{path}: tensor {name!r:.120} claims {nbytes} bytes, the file has {size}")
    return TensorInfo(name, dtype, tuple(value.shape), 0, nbytes)
