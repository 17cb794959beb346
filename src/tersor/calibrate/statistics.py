"""Saved sums: what every matrix of the full-precision model sees, for any method and any format later.

A folder: `statistics.json` tells what it was made from, `tokens.safetensors` holds the calibration sequences, and each
block is one safetensors file: for every input its tokens, Σ x², largest |x|, and the Hessian, float32, the rows of its
upper triangle one after the other. Sums of a run are taken behind the blocks that are quantized already; these are not,
which is the price of using them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.sequences import Sequences
from tersor.calibrate.stream import Input, Setting, Visitor
from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError
from tersor.decoder import Decoder
from tersor.files.atomic import atomic_writer, foreign_name
from tersor.files.hashing import sha256
from tersor.files.safetensors import SafetensorsFile
from tersor.files.safetensors_writer import SafetensorsWriter, StoredTensor
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "INDEX",
    "Statistics",
    "block_file",
    "foreign_file",
    "run_statistics",
    "save_index",
    "save_sums",
    "save_tokens",
]

SCHEMA = "tersor.statistics/1"
INDEX = "statistics.json"
TOKENS = "tokens.safetensors"
_BLOCK_FILE = re.compile(r"block-\d{4,}\.safetensors")
_MAX_INDEX = 1 << 24
_REMEDY = "; gather the statistics again with tersor calibrate"


@dataclass(frozen=True)
class Statistics:
    """A folder of saved sums.

    about  what they were made from: hashes of the model, corpus and its hash, versions
    Raises MissingError where there are none, FormatError for a folder that is damaged.
    """

    folder: Path
    about: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Statistics:
        """Read the index of `folder`."""
        path = folder / INDEX
        if not path.is_file():
            raise MissingError(f"{folder}: no saved statistics; make them with tersor calibrate")
        with path.open("rb") as file:
            content = file.read(_MAX_INDEX)
        try:
            about = json.loads(content)
            kinds = {"schema": str, "corpus": str, "text": str, "notes": list, "model": dict, "files": dict}
            complete = all(isinstance(about[key], kind) for key, kind in kinds.items()) and about["schema"] == SCHEMA
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{path}: damaged ({error}){_REMEDY}") from error
        if not complete:
            raise FormatError(f"{path}: not of schema {SCHEMA}{_REMEDY}")
        return cls(folder, about)

    @cached_property
    def sequences(self) -> Sequences:
        """The calibration text as it was cut, those sequences that were kept back among it."""
        with self._checked(self.folder / TOKENS) as file:
            if "ids" not in file.tensors or len(file.tensors["ids"].shape) != 2 or file.tensors["ids"].dtype != "I64":
                raise FormatError(f"{self.folder / TOKENS}: holds no token ids{_REMEDY}")
            ids = file.read("ids")
        return Sequences(ids, self.about["corpus"], self.about["text"], tuple(map(str, self.about["notes"])))

    def load(self, layer: int, device: str = "cpu") -> list[Input]:
        """Return the inputs of a block; `layer` of the number of blocks: that of the output matrix."""
        path = block_file(self.folder, layer)
        with self._checked(path) as file, _damage_told(path):
            return [_input(file, number, row, device) for number, row in enumerate(_rows(file))]

    def inputs(self, layer: int) -> int:
        """Return how many inputs a block has; its sums are not read, and so not compared with their hash."""
        path = block_file(self.folder, layer)
        _check_there(path)
        with _damage_told(path), SafetensorsFile(path) as file:
            return len(_rows(file))

    def _checked(self, path: Path) -> SafetensorsFile:
        _check_there(path)
        if sha256(path) != self.about["files"].get(path.name):
            raise FormatError(f"{path}: damaged (its hash is another){_REMEDY}")
        with _damage_told(path):
            return SafetensorsFile(path)


def run_statistics(decoder: Decoder, statistics: Statistics, visitor: Visitor, setting: Setting) -> None:
    """Take `visitor` through every block and then the output matrix, as `run_blocks` does, on sums that are saved.

    Of the setting device, stage and progress are used.
    """
    for layer in range(decoder.layers):
        with setting.stage("reading"):
            block = decoder.block(layer)
        done = visitor.finished(layer)
        if done is None:
            with setting.stage("reading"):
                inputs = statistics.load(layer, setting.device)
            done = visitor.visit(layer, block.weights, inputs)
            visitor.finish(layer)
        visitor.passed(block, done)
        setting.progress(layer, 1.0)
    if visitor.finished(decoder.layers) is None:
        wants = visitor.needs(decoder.matrix).squares
        unseen = Input((decoder.matrix,), None, Sums.empty(decoder.hidden, hessian=False, cross=False))
        visitor.visit(decoder.layers, {}, statistics.load(decoder.layers, setting.device) if wants else [unseen])
        visitor.finish(decoder.layers)
    setting.progress(decoder.layers, 1.0)


def block_file(folder: Path, layer: int) -> Path:
    """Where the sums of a block lie."""
    return folder / f"block-{layer:04d}.safetensors"


def foreign_file(folder: Path) -> str | None:
    """Return the first name in a folder that is none of a statistics folder's; None where all are, or it is empty."""
    return foreign_name(folder, lambda name: name in (INDEX, TOKENS) or bool(_BLOCK_FILE.fullmatch(name)), INDEX)


def save_sums(path: Path, inputs: Sequence[Input]) -> None:
    """Write the inputs of one block, whole or not at all."""
    stored: list[StoredTensor] = []
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(inputs):
        columns = len(one.sums.squares)
        rows.append({"names": one.names, "expert": one.expert, "tokens": one.sums.tokens})
        stored.append(StoredTensor(f"{number}.squares", "F32", (columns,)))
        if one.sums.peaks is not None:
            stored.append(StoredTensor(f"{number}.peaks", "F32", (columns,)))
        if one.sums.tokens:
            stored.append(StoredTensor(f"{number}.hessian", "F32", (columns * (columns + 1) // 2,)))
    with atomic_writer(path) as file:
        writer = SafetensorsWriter(file, stored, {"inputs": json.dumps(rows)})
        for number, one in enumerate(inputs):
            writer.write(f"{number}.squares", one.sums.squares.float().cpu().numpy())
            if one.sums.peaks is not None:
                writer.write(f"{number}.peaks", one.sums.peaks.cpu().numpy())
            hessian = one.sums.hessian()
            if hessian is not None:
                for row in _upper(hessian.cpu().numpy()):
                    writer.write(f"{number}.hessian", row)
        writer.finish()


def save_index(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the index with the hashes of what lies in the folder: from now on it is complete."""
    files = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    with atomic_writer(folder / INDEX) as file:
        file.write(json.dumps({"schema": SCHEMA, **about, "files": files}, indent=1).encode())


def save_tokens(folder: Path, sequences: Sequences) -> None:
    """Write the ids of the calibration text."""
    with atomic_writer(folder / TOKENS) as file:
        writer = SafetensorsWriter(file, [StoredTensor("ids", "I64", sequences.ids.shape)], {})
        writer.write("ids", np.ascontiguousarray(sequences.ids, np.int64))
        writer.finish()


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise MissingError(f"{path}: is missing{_REMEDY}")


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged ({error}){_REMEDY}") from error


def _rows(file: SafetensorsFile) -> list[Any]:
    """What is told of the inputs of a block."""
    rows = json.loads(file.metadata["inputs"])
    if not isinstance(rows, list):
        raise TypeError(f"its inputs are a {type(rows).__name__}")
    return rows


def _upper(matrix: Float32) -> Iterator[Float32]:
    for row in range(len(matrix)):
        yield matrix[row, row:]


def _input(file: SafetensorsFile, number: int, row: Mapping[str, Any], device: str) -> Input:
    squares = torch.from_numpy(file.read(f"{number}.squares"))
    columns, tokens, expert = len(squares), row["tokens"], row["expert"]
    if type(tokens) is not int or tokens < 0 or not isinstance(expert, int | None):
        raise ValueError(f"{tokens!r} tokens of expert {expert!r}")
    names = tuple(map(str, row["names"]))
    sums = Sums(tokens, squares.double().to(device), None, None)
    if f"{number}.peaks" in file.tensors:
        sums.peaks = torch.from_numpy(file.read(f"{number}.peaks")).to(device)
    if tokens:
        packed = file.read(f"{number}.hessian")
        if packed.shape != (columns * (columns + 1) // 2,):
            raise ValueError(f"{len(packed)} numbers of the Hessian of {columns} columns")
        sums.product = torch.zeros((columns, columns), dtype=torch.float64)
        at = 0
        for place in range(columns):
            sums.product[place, place:] = torch.from_numpy(packed[at : at + columns - place])
            at += columns - place
        sums.product = sums.product.mul_(tokens).to(device)
    return Input(names, expert, sums)
