"""Parsing the header of one GGUF file: keys, tensor table, and every structural rule llama.cpp holds it to.

Source: the GGUF description in ggml and the checks of its reader. Sizes of blocks come from the `gguf` package.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from gguf import GGML_QUANT_SIZES

from tersor.core.errors import FormatError
from tersor.core.metadata import MetadataEntry, MetadataKind, MetadataValue
from tersor.files.positional import PositionalFile

__all__ = ["BLOCKS", "GgufHeader", "GgufTensor", "parse_header"]

MAX_HEADER_BYTES = 64 * 2**20
"""Keys and tensor table together; the largest vocabularies of today take 20 MiB."""
MAX_ARRAY_ITEMS = 2_500_000
"""Items of all arrays together; keeps a hostile header below 200 MB of Python values."""
MAX_KEYS = 65_536
MAX_TENSORS = 131_072
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

BLOCKS: dict[int, tuple[str, int, int]] = {
    int(kind): (kind.name, block, nbytes) for kind, (block, nbytes) in GGML_QUANT_SIZES.items()
}
"""ggml type number → (name, elements in a block, bytes of a block)."""

_SCALARS: dict[int, tuple[str, str]] = {
    0: ("u8", "<B"), 1: ("i8", "<b"), 2: ("u16", "<H"), 3: ("i16", "<h"), 4: ("u32", "<I"), 5: ("i32", "<i"),
    6: ("f32", "<f"), 7: ("bool", "<B"), 10: ("u64", "<Q"), 11: ("i64", "<q"), 12: ("f64", "<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` in numpy order (rows…, columns), `offset` in bytes of its file, `nbytes` without padding."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of `shape[-1]` elements."""
        _, block, nbytes = BLOCKS[self.ggml_type]
        return self.shape[-1] // block * nbytes


@dataclass(slots=True)
class GgufHeader:
    """What the header says, and `problems`: every rule it breaks that does not stop the parsing."""

    version: int
    entries: dict[str, MetadataEntry] = field(default_factory=dict)
    tensors: dict[str, GgufTensor] = field(default_factory=dict)
    alignment: int = DEFAULT_ALIGNMENT
    problems: list[str] = field(default_factory=list)


def parse_header(file: PositionalFile) -> GgufHeader:
    """Return the header of an open file; FormatError when it cannot be read to its end."""
    cursor = _Cursor(file)
    if cursor.take(4) != b"GGUF":
        raise FormatError(f"{file.path}: not a GGUF file (it does not begin with the letters GGUF)")
    version = cursor.integer("<I")
    if version & 0xFFFF == 0 and version:
        raise FormatError(f"{file.path}: a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise FormatError(f"{file.path}: GGUF version {version}; versions 2 and 3 are read")
    header = GgufHeader(version)
    tensors, keys = cursor.integer("<Q"), cursor.integer("<Q")
    cursor.check_count("tensors", tensors, smallest=25, limit=MAX_TENSORS)
    cursor.check_count("keys", keys, smallest=13, limit=MAX_KEYS)
    for _ in range(keys):
        _read_key(cursor, header)
    _set_alignment(header)
    table = [_read_tensor(cursor, header) for _ in range(tensors)]
    start = -(-cursor.position // header.alignment) * header.alignment
    _lay_out(table, header, start, file.size)
    return header


class _Cursor:
    """Reads forward through the header; the buffer grows only as far as the file really goes."""

    def __init__(self, file: PositionalFile) -> None:
        self.file = file
        self.position = 0
        self.items_left = MAX_ARRAY_ITEMS
        self.buffer = file.read(0, min(file.size, 2**18))

    def need(self, count: int) -> int:
        """Make `count` further bytes available and return where they begin."""
        end = self.position + count
        if end > len(self.buffer):
            if end > self.file.size:
                raise FormatError(f"{self.file.path}: truncated: byte {end} is needed, the file has {self.file.size}")
            if end > MAX_HEADER_BYTES:
                raise FormatError(f"{self.file.path}: the header is longer than {MAX_HEADER_BYTES} bytes")
            wanted = min(max(end, 2 * len(self.buffer)), self.file.size, MAX_HEADER_BYTES)
            self.buffer += self.file.read(len(self.buffer), wanted - len(self.buffer))
        start, self.position = self.position, end
        return start

    def take(self, count: int) -> bytes:
        start = self.need(count)
        return bytes(self.buffer[start : start + count])

    def integer(self, code: str) -> int:
        return cast("int", self.scalar(code))

    def scalar(self, code: str) -> int | float:
        start = self.need(struct.calcsize(code))
        return cast("int | float", struct.unpack_from(code, self.buffer, start)[0])

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.integer("<Q")
        if limit is not None and length > limit:
            raise FormatError(f"{self.file.path}: {what} of {length} bytes, at most {limit} are read")
        return self.decoded(self.take(length), what)

    def texts(self, count: int, what: str) -> list[str]:
        """Read `count` strings in one pass over the buffer: the vocabulary, so speed matters."""
        made: list[str] = []
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            end = self.position + 8
            if end > len(self.buffer):
                self.need(8)
            (length,) = length_of(self.buffer, end - 8)
            self.position = end
            if end + length > len(self.buffer):
                self.need(length)
            self.position = end + length
            try:
                made.append(self.buffer[end : end + length].decode())
            except UnicodeDecodeError as error:
                raise FormatError(f"{self.file.path}: item {len(made)} of {what} is not UTF-8") from error
        return made

    def decoded(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.file.path}: {what} is not UTF-8: {data[:40]!r}") from error

    def check_count(self, what: str, count: int, *, smallest: int, limit: int) -> None:
        """Refuse a count that the rest of the file cannot hold, before anything is allocated for it."""
        left = self.file.size - self.position
        if count > limit or count * smallest > left:
            raise FormatError(
                f"{self.file.path}: {count} {what} claimed; {left} bytes are left, and at most {limit} are read"
            )


def _read_key(cursor: _Cursor, header: GgufHeader) -> None:
    key = cursor.text("a key", MAX_KEY_BYTES)
    if not key:
        header.problems.append("a key is empty")
    if key in header.entries:
        header.problems.append(f"the key {key!r:.120} appears twice")
    header.entries[key] = _read_value(cursor, key, cursor.integer("<I"), header)


def _read_value(cursor: _Cursor, key: str, code: int, header: GgufHeader) -> MetadataEntry:
    if code == _STRING:
        return MetadataEntry(cursor.text(f"the value of {key!r:.120}"), "str")
    if code == _ARRAY:
        return _read_array(cursor, key)
    if code not in _SCALARS:
        raise FormatError(f"{cursor.file.path}: the key {key!r:.120} has value type {code}, 0 to 12 exist")
    kind, layout = _SCALARS[code]
    value = cursor.scalar(layout)
    if kind == "bool" and value not in (0, 1):
        header.problems.append(f"the key {key!r:.120} is a bool with value {value}")
    return MetadataEntry(bool(value) if kind == "bool" else value, cast("MetadataKind", kind))


def _read_array(cursor: _Cursor, key: str) -> MetadataEntry:
    what = f"items of the array {key!r:.120}"
    code, count = cursor.integer("<I"), cursor.integer("<Q")
    if code == _ARRAY:
        raise FormatError(f"{cursor.file.path}: the key {key!r:.120} is an array of arrays, which llama.cpp refuses")
    if code != _STRING and code not in _SCALARS:
        raise FormatError(f"{cursor.file.path}: the array {key!r:.120} has item type {code}, 0 to 12 exist")
    width = 8 if code == _STRING else struct.calcsize(_SCALARS[code][1])
    cursor.check_count(what, count, smallest=width, limit=cursor.items_left)
    cursor.items_left -= count
    if code == _STRING:
        return MetadataEntry(cast("MetadataValue", cursor.texts(count, f"{key!r:.120}")), "[str]")
    kind, layout = _SCALARS[code]
    start = cursor.need(count * width)
    values = np.frombuffer(cursor.buffer, dtype=layout, count=count, offset=start)
    items = (values != 0 if kind == "bool" else values).tolist()
    del values  # the buffer cannot grow while an array looks into it
    return MetadataEntry(items, cast("MetadataKind", f"[{kind}]"))


def _set_alignment(header: GgufHeader) -> None:
    entry = header.entries.get("general.alignment")
    if entry is None:
        return
    value = entry.value
    if entry.kind != "u32" or not isinstance(value, int) or value == 0 or value & (value - 1):
        header.problems.append(f"general.alignment is {value!r:.40} ({entry.kind}); a u32 power of 2 is needed")
        return
    header.alignment = value


_Row = tuple[str, tuple[int, ...], int, int]


def _read_tensor(cursor: _Cursor, header: GgufHeader) -> _Row:
    """Read one row of the tensor table: name, shape in numpy order, type, offset in the data section."""
    name = cursor.text("a tensor name", MAX_KEY_BYTES)
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        header.problems.append(f"the tensor name {name!r:.120} must have 1 to {MAX_NAME_BYTES} bytes")
    dimensions = cursor.integer("<I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise FormatError(
            f"{cursor.file.path}: the tensor {name!r:.120} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} are read"
        )
    sizes = [cursor.integer("<Q") for _ in range(dimensions)]
    return name, tuple(reversed(sizes)), cursor.integer("<I"), cursor.integer("<Q")


def _lay_out(table: list[_Row], header: GgufHeader, start: int, size: int) -> None:
    """Check shapes and offsets: contiguous in table order, each padded to the alignment, all inside the file."""
    due = 0
    for name, shape, kind, offset in table:
        if name in header.tensors:
            header.problems.append(f"the tensor {name!r:.120} appears twice")
        fault = _fault_of_shape(shape, kind)
        if fault:
            header.problems.append(f"the tensor {name!r:.120} {fault}")
            due = offset
            continue
        _, block, block_bytes = BLOCKS[kind]
        nbytes = math.prod(shape) // block * block_bytes
        if offset % header.alignment:
            header.problems.append(f"the tensor {name!r:.120} is at {offset}, not a multiple of {header.alignment}")
        elif offset != due:
            how = "overlaps the one before" if offset < due else "leaves a gap"
            header.problems.append(f"the tensor {name!r:.120} is at {offset} and {how}; {due} was due")
        if start + offset + nbytes > size:
            header.problems.append(
                f"the tensor {name!r:.120} ends at byte {start + offset + nbytes}, the file has {size}: truncated"
            )
        header.tensors[name] = GgufTensor(name, shape, kind, start + offset, nbytes)
        due = offset + -(-nbytes // header.alignment) * header.alignment


def _fault_of_shape(shape: tuple[int, ...], kind: int) -> str | Literal[""]:
    if kind not in BLOCKS:
        return f"has type {kind}, which is unknown or no longer exists"
    if 0 in shape or math.prod(shape) >= 2**63:
        return f"has shape {shape}; sizes must be positive and their product below 2^63"
    label, block, _ = BLOCKS[kind]
    if shape[-1] % block:
        return f"has rows of {shape[-1]} elements; {label} needs a multiple of {block}"
    return ""
