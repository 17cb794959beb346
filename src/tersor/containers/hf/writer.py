"""Writing a whole checkpoint folder: quantized matrices as they arrive, everything else as the source has it.

All shapes are known before the first weight, so shards are laid out first and filled in any order; one matrix is in
memory at a time. The folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from tersor.containers.hf.table import Container, container, is_written_here
from tersor.core.card import Artefact
from tersor.core.errors import FormatError, SchemeError, ShapeError, TersorError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.files.atomic import atomic_folder, check_folder, foreign_name
from tersor.files.checkpoint import inside, read_json
from tersor.files.dtypes import ITEM_BYTES, Numbers
from tersor.files.hashing import sha256
from tersor.files.safetensors import TensorInfo
from tersor.files.safetensors_writer import SafetensorsWriter, StoredTensor, encode

__all__ = ["SHARD_BYTES", "CheckpointSource", "check_output", "write_checkpoint"]

SHARD_BYTES = 5_000_000_000
"""Bytes of tensors in one file, as the hub's own tools split them."""
COPY_BYTES = 1 << 24
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja",
    "chat_template.json", "generation_config.json", "tekken.json", "*.tiktoken", "preprocessor_config.json",
    "processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files that go along as they are."""
CONFIG = "config.json"
_WRITTEN = (
    CONFIG, "model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors",
    "*.card.json", "*.card.md", "*.card.html", ".*.tersor-partial",
)  # fmt: skip
"""Files that a run makes, and what one leaves that was killed."""


class CheckpointSource(Protocol):
    """What tensors are copied from: Checkpoint, or QuantizedCheckpoint."""

    tensors: dict[str, TensorInfo]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        """Return rows of the leading axis."""
        ...


def write_checkpoint(
    folder: Path,
    source: CheckpointSource,
    formats: Mapping[str, Format],
    tensors: Iterable[tuple[str, QuantizedTensor]],
    output: Path,
    *,
    name: str,
    activations: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[Artefact, ...]:
    """Write a checkpoint to the folder `output`, which appears whole; return its files with their hashes.

    folder       of the source: its config.json, tokenizer and generation settings go along
    source       its tensors; those that `formats` does not name are copied in their own type
    formats      tensor name (as `source` names it, ending in .weight) → number format
    tensors      (name, rows in the order of `source`), in any order, each name of `formats` once
    name         a key of CONTAINERS
    activations  whether engines shall round activations to 8 bits, token by token (compressed-tensors, 8 bits)
    shard_bytes  when a new file begins; a matrix is never split
    Raises SchemeError and ShapeError for what the container cannot hold, before anything is written.
    """
    row = container(name)
    check_output(folder, output)
    config = read_json(folder / CONFIG)
    stored = _lay_out(row, source, formats)
    modules = {tensor.removesuffix(".weight"): fmt for tensor, fmt in formats.items()}
    settings = row.settings(modules, _left_out(source, formats), activations)
    shards = _shards(stored, shard_bytes)
    with atomic_folder(output) as partial:
        with contextlib.ExitStack() as files:
            writers = _open(files, partial, shards)
            _fill(row, source, formats, tensors, writers)
            for writer in dict.fromkeys(writers.values()):
                writer.finish()
        if len(shards) > 1:
            _write_json(partial / "model.safetensors.index.json", _index(shards))
        _write_json(partial / CONFIG, {**config, "quantization_config": settings})
        _copy_companions(folder, partial)
        paths = sorted(path for path in partial.iterdir() if path.is_file())
        return tuple(Artefact(path.name, path.stat().st_size, sha256(path)) for path in paths)


def check_output(folder: Path, output: Path) -> None:
    """Refuse to write the checkpoint `output` over its source `folder`, or over what tersor has not written."""
    if output.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise SchemeError(f"{output}: holds the source; choose another folder")
    check_folder(output)
    foreign = _foreign(output) if output.is_dir() else None
    if foreign is not None:
        raise FormatError(
            f"{output / foreign}: was not written by tersor, so the folder is not replaced; choose another name, or "
            "move away what you need and remove the folder"
        )


def _foreign(output: Path) -> str | None:
    """Return the first name in the folder `output` that tersor has not written, None where all is of its making."""
    found = foreign_name(output, _is_written, CONFIG)
    if found is not None or not (output / CONFIG).is_file():
        return found
    settings = read_json(output / CONFIG).get("quantization_config")
    # A Card alone may be that of a GGUF made beside its source.
    is_ours = isinstance(settings, dict) and (any(output.glob("*.card.json")) or is_written_here(settings))
    return None if is_ours else CONFIG


def _is_written(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*_WRITTEN, *_COMPANIONS))


def _lay_out(
    row: Container, source: CheckpointSource, formats: Mapping[str, Format]
) -> dict[str, tuple[StoredTensor, ...]]:
    """Return source tensor → the tensors written for it."""
    _check_formats(row, source, formats)
    stored: dict[str, tuple[StoredTensor, ...]] = {}
    for name, info in source.tensors.items():
        if name not in formats:
            if info.dtype not in ITEM_BYTES:
                raise SchemeError(f"{name} is {info.dtype} and gets no format; quantized tensors need one")
            stored[name] = (StoredTensor(name, info.dtype, info.shape),)
            continue
        try:
            parts = row.parts(formats[name], info.shape)
        except TersorError as error:
            raise type(error)(f"{name} {info.shape} as {formats[name].name} in {row.name}: {error}") from error
        module = name.removesuffix(".weight")
        stored[name] = tuple(StoredTensor(f"{module}.{part}", kind.dtype, kind.shape) for part, kind in parts.items())
    return stored


def _check_formats(row: Container, source: CheckpointSource, formats: Mapping[str, Format]) -> None:
    absent = next((name for name in formats if name not in source.tensors or not name.endswith(".weight")), None)
    if absent is not None or not formats:
        what = f"{absent!r} is no weight of the source" if absent else "no tensor is to be quantized"
        raise SchemeError(f"{what}; {row.name} needs matrices called MODULE.weight")
    kinds = sorted({fmt.name for fmt in formats.values()})
    if len(kinds) > 1 and not row.mixes:
        raise SchemeError(
            f"{row.name} holds one format for all matrices, not {', '.join(kinds)}: use compressed-tensors"
        )


def _left_out(source: CheckpointSource, formats: Mapping[str, Format]) -> list[str]:
    """Return the modules with a matrix that stays as it is; the output matrix may be tied and so have no tensor."""
    left = [
        name.removesuffix(".weight")
        for name, info in source.tensors.items()
        if name.endswith(".weight") and name not in formats and len(info.shape) == 2 and "embed" not in name
    ]
    return left if "lm_head.weight" in formats else list(dict.fromkeys([*left, "lm_head"]))


def _shards(stored: Mapping[str, tuple[StoredTensor, ...]], limit: int) -> list[dict[str, tuple[StoredTensor, ...]]]:
    """Return the tensors of each file; a file holds at least one."""
    shards: list[dict[str, tuple[StoredTensor, ...]]] = [{}]
    nbytes = 0
    for name, parts in stored.items():
        size = sum(part.nbytes for part in parts)
        if shards[-1] and nbytes + size > limit:
            shards.append({})
            nbytes = 0
        shards[-1][name] = parts
        nbytes += size
    return shards


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _open(
    files: contextlib.ExitStack, folder: Path, shards: Sequence[Mapping[str, tuple[StoredTensor, ...]]]
) -> dict[str, SafetensorsWriter]:
    """Return source tensor → the writer of the file that it belongs to."""
    writers: dict[str, SafetensorsWriter] = {}
    for index, shard in enumerate(shards):
        file = files.enter_context((folder / _shard_name(index, len(shards))).open("wb"))
        parts = [part for parts in shard.values() for part in parts]
        writers |= dict.fromkeys(shard, SafetensorsWriter(file, parts, {"format": "pt"}))
    return writers


def _fill(
    row: Container,
    source: CheckpointSource,
    formats: Mapping[str, Format],
    tensors: Iterable[tuple[str, QuantizedTensor]],
    writers: Mapping[str, SafetensorsWriter],
) -> None:
    for name, info in source.tensors.items():
        if name not in formats:
            for values in _slices(source, info):
                writers[name].write(name, encode(values, info.dtype))
    for name, tensor in tensors:
        if (
            name not in formats
            or tensor.format.name != formats[name].name
            or tensor.shape != source.tensors[name].shape
        ):
            wanted = f"{formats[name].name} {source.tensors[name].shape}" if name in formats else "not expected"
            raise ShapeError(f"{name} arrived as {tensor.format.name} {tensor.shape}, {wanted}")
        try:
            parts = row.encode(tensor)
        except TersorError as error:
            raise type(error)(f"{name}: {error}") from error
        for part, values in parts.items():
            writers[name].write(f"{name.removesuffix('.weight')}.{part}", values)


def _slices(source: CheckpointSource, info: TensorInfo) -> Iterator[Numbers]:
    """Yield a tensor by rows of its leading axis, a few MiB at a time."""
    rows = info.shape[0] if info.shape else 1
    step = max(1, COPY_BYTES // max(info.nbytes // max(rows, 1), 1))
    for start in range(0, rows, step):
        yield source.read(info.name, start, min(start + step, rows))


def _index(shards: Sequence[Mapping[str, tuple[StoredTensor, ...]]]) -> dict[str, object]:
    total = sum(part.nbytes for shard in shards for parts in shard.values() for part in parts)
    places = {
        part.name: _shard_name(index, len(shards))
        for index, shard in enumerate(shards)
        for parts in shard.values()
        for part in parts
    }
    return {"metadata": {"total_size": total}, "weight_map": places}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_companions(folder: Path, output: Path) -> None:
    """Copy what engines need beside the weights; FormatError for a link that leads out of the folder."""
    names = {path.name for pattern in _COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    for name in sorted(names):
        shutil.copyfile(inside(folder, name), output / name)
