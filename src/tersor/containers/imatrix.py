"""Importance matrices as llama.cpp stores them: reading both of its formats, writing the current one.

Source: llama.cpp tools/imatrix. Current: a GGUF of type "imatrix" with `NAME.in_sum2`, the sums of squared inputs
[experts, columns], and `NAME.counts` [experts, 1]; their ratio is the importance. Older: a stream of names, call
counts and float sums.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tersor.containers.gguf import write_gguf
from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError
from tersor.core.metadata import MetadataEntry
from tersor.core.plan import PlannedTensor
from tersor.files.gguf import GgufFile

__all__ = ["Importances", "read_imatrix", "write_imatrix"]

_MAX_ENTRIES, _MAX_NAME, _MAX_COLUMNS = 1 << 16, 512, 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class Importances:
    """What an importance matrix says.

    sums      GGUF weight name → Σ x² over tokens, float32 [experts or 1, columns]
    counts    GGUF weight name → tokens seen, float32 [experts or 1]
    datasets  what it was made from
    chunks, chunk_size  sequences and tokens in each
    """

    sums: Mapping[str, Float32]
    counts: Mapping[str, Float32]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    def values(self) -> dict[str, Float32]:
        """Return the importance of each column: [columns], or [experts, columns]; ones where no token was seen."""
        made = {}
        for name, sums in self.sums.items():
            counts = self.counts[name][:, None]
            mean = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0).astype(np.float32)
            made[name] = mean[0] if len(mean) == 1 else mean
        return made


def write_imatrix(path: Path, content: Importances) -> None:
    """Write a GGUF that llama-quantize takes with --imatrix, whole or not at all."""
    metadata = {
        "general.type": MetadataEntry("imatrix", "str"),
        "imatrix.datasets": MetadataEntry(list(content.datasets) or ["unknown"], "[str]"),
        "imatrix.chunk_count": MetadataEntry(content.chunks, "u32"),
        "imatrix.chunk_size": MetadataEntry(content.chunk_size, "u32"),
    }
    parts = []
    for name in sorted(content.sums):
        parts.append((f"{name}.in_sum2", np.ascontiguousarray(content.sums[name], np.float32)))
        parts.append((f"{name}.counts", np.ascontiguousarray(content.counts[name][:, None], np.float32)))
    tensors = [PlannedTensor(name, values.shape, "F32", "f32", "", "", values.nbytes) for name, values in parts]
    write_gguf(path, metadata, tensors, ((name, values.view(np.uint8)) for name, values in parts))


def read_imatrix(path: Path) -> Importances:
    """Read an importance file of either format; FormatError for anything else."""
    if not path.is_file():
        raise MissingError(f"{path}: no such importance file")
    with path.open("rb") as file:
        magic = file.read(4)
    return _read_gguf(path) if magic == b"GGUF" else _read_stream(path)


def _read_gguf(path: Path) -> Importances:
    file = GgufFile(path)
    try:
        if file.metadata.get("general.type") != "imatrix":
            raise FormatError(f"{path}: a GGUF of type {file.metadata.get('general.type')!r}, not an importance matrix")
        sums: dict[str, Float32] = {}
        counts: dict[str, Float32] = {}
        for name, tensor in file.tensors.items():
            if not name.endswith((".in_sum2", ".counts")):
                raise FormatError(f"{path}: the tensor {name!r} has no place in an importance matrix")
            rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
            values = file.read_bytes(name, 0, rows).reshape(-1).view(np.float32).reshape(rows, -1)
            stem, _, kind = name.rpartition(".")
            (sums if kind == "in_sum2" else counts)[stem] = values if kind == "in_sum2" else values.reshape(-1)
        datasets = file.metadata.get("imatrix.datasets") or ()
        chunks, size = file.metadata.get("imatrix.chunk_count", 0), file.metadata.get("imatrix.chunk_size", 0)
    finally:
        file.close()
    return _checked(
        path,
        Importances(
            sums,
            counts,
            tuple(map(str, datasets)) if isinstance(datasets, list) else (),
            chunks if isinstance(chunks, int) else 0,
            size if isinstance(size, int) else 0,
        ),
    )


def _read_stream(path: Path) -> Importances:
    data = path.read_bytes()
    at = 0

    def take(size: int, what: str) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(data):
            raise FormatError(f"{path}: ends inside {what} at byte {at}; not an importance matrix, or cut off")
        at += size
        return data[at - size : at]

    def number(what: str, largest: int) -> int:
        (value,) = struct.unpack("<i", take(4, what))
        if not 0 <= value <= largest:
            raise FormatError(f"{path}: {what} is {value} at byte {at - 4}; not an importance matrix")
        return int(value)

    sums: dict[str, Float32] = {}
    counts: dict[str, Float32] = {}
    for _ in range(number("the number of entries", _MAX_ENTRIES)):
        name = take(number("the length of a name", _MAX_NAME), "a name").decode("utf-8", errors="replace")
        calls = number("a count", (1 << 31) - 1)
        columns = number("the number of columns", _MAX_COLUMNS)
        values = np.frombuffer(take(4 * columns, f"the values of {name}"), np.float32)
        # This format stores sums divided by nothing but multiplied by the number of calls; the ratio is what counts.
        sums[name], counts[name] = values[None].copy(), np.array([max(calls, 1)], np.float32)
    datasets: tuple[str, ...] = ()
    chunks = 0
    if at < len(data):
        chunks = number("the number of chunks", (1 << 31) - 1)
        datasets = (take(number("the length of a path", 1 << 16), "the data's path").decode(errors="replace"),)
    return _checked(path, Importances(sums, counts, datasets, chunks, 0))


def _checked(path: Path, content: Importances) -> Importances:
    if not content.sums or set(content.sums) != set(content.counts):
        odd = sorted(set(content.sums) ^ set(content.counts))[:1]
        raise FormatError(f"{path}: {'sums without counts: ' + odd[0] if odd else 'no entries'}")
    for name, sums in content.sums.items():
        counts = content.counts[name]
        if sums.ndim != 2 or counts.shape != (len(sums),):
            raise FormatError(f"{path}: {name} has sums {sums.shape} and counts {counts.shape}")
        if not (np.isfinite(sums).all() and (sums >= 0).all() and np.isfinite(counts).all() and (counts >= 0).all()):
            raise FormatError(f"{path}: {name} holds NaN, infinity or negative sums")
    return content
