"""Writing GGUF files as a stream: header first, then encoded rows as they arrive, whole or in parts.

Every size is known before the first weight is read, so nothing is held back and nothing is written twice. Why these
bytes are written here and not by the `gguf` package: docs/decisions/0003-gguf-writer.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tersor.core.arrays import Bytes
from tersor.core.card import Artefact
from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.core.metadata import MetadataEntry
from tersor.core.plan import PlannedTensor
from tersor.files.atomic import atomic_set
from tersor.formats import FORMATS

__all__ = ["ALIGNMENT", "Part", "Split", "lay_out", "write_gguf"]

ALIGNMENT = 32
"""Bytes that the data section and every tensor are aligned to: GGUF's default, so no key is needed for it."""

MAX_PARTS = 65_535  # split.count is a u16
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
_COPY_BYTES = 1 << 22

_SCALARS = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Split:
    """When to begin a new part: after `max_bytes` of tensor data or `max_tensors`; None: no limit."""

    max_bytes: int | None = None
    max_tensors: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_bytes", self.max_bytes), ("max_tensors", self.max_tensors)):
            if value is not None and value < 1:
                raise SchemeError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class Part:
    """One file to write: its final name, its header up to the first tensor, its tensors, its exact size."""

    name: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]
    nbytes: int


def lay_out(
    path: Path, metadata: Mapping[str, MetadataEntry], tensors: Sequence[PlannedTensor], split: Split | None = None
) -> tuple[Part, ...]:
    """Return the files that `path` becomes, with their exact headers and sizes; no weight is needed for it.

    One part is called `path.name`; several are called `STEM-00001-of-0000N.gguf`, the first with all metadata.
    Raises FormatError for tensors that a GGUF cannot hold.
    """
    _check_tensors(tensors)
    groups = list(_groups(tensors, split or Split()))
    if len(groups) > MAX_PARTS:
        raise SchemeError(f"{len(groups)} parts, a split GGUF has at most {MAX_PARTS}; allow larger parts")
    parts = []
    for index, group in enumerate(groups):
        entries: dict[str, MetadataEntry] = dict(metadata) if index == 0 else {}
        name = path.name
        if len(groups) > 1:
            name = f"{path.name.removesuffix('.gguf')}-{index + 1:05d}-of-{len(groups):05d}.gguf"
            entries["split.no"] = MetadataEntry(index, "u16")
            entries["split.count"] = MetadataEntry(len(groups), "u16")
            entries["split.tensors.count"] = MetadataEntry(len(tensors), "i32")
        header = encode_header(entries, group)
        parts.append(Part(name, header, group, len(header) + sum(_padded(tensor.nbytes) for tensor in group)))
    return tuple(parts)


def write_gguf(
    path: Path,
    metadata: Mapping[str, MetadataEntry],
    tensors: Sequence[PlannedTensor],
    chunks: Iterable[tuple[str, Bytes]],
    *,
    split: Split | None = None,
    late: Callable[[], Mapping[str, MetadataEntry]] | None = None,
) -> tuple[Artefact, ...]:
    """Write the files of `lay_out` and return them with their hashes; they appear together, or not at all.

    chunks  encoded rows as (tensor name, uint8 array), in the order of `tensors`; a tensor may come in many chunks
    late    called once all chunks are written: metadata that replaces equally long placeholders (a hash of what
            was read meanwhile)
    Raises ShapeError when chunks and tensors disagree, and what atomic_set raises.
    """
    parts = lay_out(path, metadata, tensors, split)
    stream = iter(chunks)
    with atomic_set(path.parent) as files:
        opened = [files.open(part.name) for part in parts]
        for part, file in zip(parts, opened, strict=True):
            file.write(part.header)
            for tensor in part.tensors:
                _write_tensor(file, tensor, stream)
        surplus = next(stream, None)
        if surplus is not None:
            raise ShapeError(f"rows of {surplus[0]} arrived after the last tensor was complete")
        if late is not None:
            _replace_header(opened[0], parts[0], lay_out(path, {**metadata, **late()}, tensors, split)[0])
        return tuple(Artefact(part.name, part.nbytes, _hash(f)) for part, f in zip(parts, opened, strict=True))


def encode_header(metadata: Mapping[str, MetadataEntry], tensors: Sequence[PlannedTensor]) -> bytes:
    """Return the bytes of a GGUF up to its first tensor: magic, counts, keys, tensor table, padding."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [encode_entry(key, entry) for key, entry in metadata.items()]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", FORMATS[tensor.format].ggml_type, offset))
        offset += _padded(tensor.nbytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def encode_entry(key: str, entry: MetadataEntry) -> bytes:
    """Return one key with its type and value.

    >>> encode_entry("a", MetadataEntry(True, "bool"))[-5:]
    b'\\x07\\x00\\x00\\x00\\x01'
    """
    item = entry.kind.strip("[]")
    code = _STRING if item == "str" else _SCALARS[item][0]
    if isinstance(entry.value, list):
        head = struct.pack("<IIQ", _ARRAY, code, len(entry.value))
        if item == "str":
            return _text(key) + head + b"".join(_text(str(value)) for value in entry.value)
        return _text(key) + head + struct.pack(f"<{len(entry.value)}{_SCALARS[item][1][1:]}", *entry.value)
    value = _text(str(entry.value)) if item == "str" else struct.pack(_SCALARS[item][1], entry.value)
    return _text(key) + struct.pack("<I", code) + value


def _check_tensors(tensors: Sequence[PlannedTensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        size = len(tensor.name.encode())
        if not 0 < size <= MAX_NAME_BYTES:
            raise FormatError(f"the tensor name {tensor.name!r} has {size} bytes; a GGUF holds 1 to {MAX_NAME_BYTES}")
        if tensor.name in seen:
            raise FormatError(f"two tensors are called {tensor.name!r}; names in a GGUF are unique")
        seen.add(tensor.name)
        if not 1 <= len(tensor.shape) <= MAX_DIMENSIONS or min(tensor.shape) < 1:
            raise FormatError(
                f"{tensor.name} {tensor.shape}: a GGUF holds tensors of 1 to {MAX_DIMENSIONS} axes, none of them empty"
            )
        if "gguf" not in FORMATS[tensor.format].containers:
            raise FormatError(f"{tensor.name}: a GGUF cannot hold {tensor.format}")
        rows = tensor.weights // tensor.shape[-1]
        nbytes = rows * FORMATS[tensor.format].row_bytes(tensor.shape[-1])
        if tensor.nbytes != nbytes:
            raise FormatError(
                f"{tensor.name} {tensor.shape}: {tensor.format} takes {nbytes} bytes, not {tensor.nbytes}"
            )


def _groups(tensors: Sequence[PlannedTensor], split: Split) -> Iterator[tuple[PlannedTensor, ...]]:
    """Yield the tensors of each part: never none, a tensor larger than the limit alone."""
    group: list[PlannedTensor] = []
    nbytes = 0
    for tensor in tensors:
        is_full = split.max_tensors is not None and len(group) >= split.max_tensors
        is_heavy = split.max_bytes is not None and nbytes + _padded(tensor.nbytes) > split.max_bytes
        if group and (is_full or is_heavy):
            yield tuple(group)
            group, nbytes = [], 0
        group.append(tensor)
        nbytes += _padded(tensor.nbytes)
    yield tuple(group)


def _write_tensor(file: BinaryIO, tensor: PlannedTensor, stream: Iterator[tuple[str, Bytes]]) -> None:
    done = 0
    while done < tensor.nbytes:
        name, chunk = next(stream, ("", None))
        if chunk is None or name != tensor.name or done + chunk.nbytes > tensor.nbytes:
            got = f"{chunk.nbytes} of {name}" if chunk is not None else "nothing more"
            raise ShapeError(f"{tensor.name}: {tensor.nbytes - done} bytes are to come, {got} arrived")
        file.write(np.ascontiguousarray(chunk).data)
        done += chunk.nbytes
    file.write(bytes(_padded(done) - done))


def _replace_header(file: BinaryIO, old: Part, new: Part) -> None:
    if len(old.header) != len(new.header):
        raise ShapeError(f"late metadata changes the header from {len(old.header)} to {len(new.header)} bytes")
    file.seek(0)
    file.write(new.header)


def _hash(file: BinaryIO) -> str:
    """Return the SHA-256 of everything written to `file`."""
    file.flush()
    file.seek(0)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_COPY_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # real files have it; BinaryIO forgets it
        digest.update(buffer[:count])
    return digest.hexdigest()


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
