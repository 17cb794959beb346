"""Quantize a model into a GGUF: plan, then read, encode, measure and write side by side, a slice of rows at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol, Unpack

import numpy as np

from tersor.containers.gguf import Part, Split, lay_out, write_gguf
from tersor.containers.mixtures import file_type
from tersor.core.arrays import Bytes, Float32
from tersor.core.card import Artefact, Card, Seconds, TensorError
from tersor.core.errors import MissingError, SchemeError, TersorError
from tersor.core.metadata import MetadataEntry
from tersor.core.plan import Plan, PlannedTensor
from tersor.files.atomic import check_file
from tersor.formats import FORMATS
from tersor.models.model import Model, ModelTensor
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.cards import save_card
from tersor.pipeline.steps.planning import Choices, Importance, make_plan
from tersor.pipeline.steps.stages import Clock, run_ahead, start
from tersor.pipeline.steps.stored import source_bytes

__all__ = ["Findings", "Progress", "check_name", "quantize", "slices_of", "squared_error"]

SLICE_WEIGHTS = 1 << 22
"""Weights read at once: 16 MiB of float32; a handful of slices is all the weight memory that is ever held."""
MEASURED_WEIGHTS = 1 << 17
"""Weights compared at once: small enough for the processor's cache, which makes measuring cheap."""


class Progress(Protocol):
    """Called after every written slice."""

    def __call__(self, tensor: str, done: int, total: int) -> None:
        """`done` of `total` bytes of encoded weights are written, the last of them of `tensor`."""


def quantize(
    model: Model,
    format: str,  # noqa: A002 (the word of the command line)
    output: Path,
    *,
    split_max_bytes: int | None = None,
    split_max_tensors: int | None = None,
    threads: int = 0,
    measure: bool = True,
    dry_run: bool = False,
    command: str = "",
    progress: Progress | None = None,
    made: Findings | None = None,
    **choices: Unpack[Choices],
) -> Card:
    """Write `model` as GGUF file(s) at `output`, with its Card (.json, .md, .html) beside, and return the Card.

    format            a key of FILE_TYPES, such as "q4_k_m"
    choices           see Choices: overrides, search, importance, fallback
    split_max_bytes   begin a new part before this many bytes of tensors; None: one file
    threads           of the encoder; 0: all cores; never changes the bytes
    measure           compare every slice with what it decodes to
    dry_run           plan and exact sizes only: no weight is read, nothing is written
    command           what the user typed, for the Card; must hold no private path
    made              rows that a calibrated method has made already, and what it adds to the Card

    An older file called `output` is replaced, but only by a complete new one: a killed run leaves it as it was.
    Raises SchemeError, ShapeError (a refused fallback), MissingError (no folder, no room), and errors of the reader
    and encoder with the tensor named.
    """
    began = perf_counter()
    plan = make_plan(model, format, **choices)
    split = Split(split_max_bytes, split_max_tensors)
    metadata = provenance.artefact_metadata(model, plan.recipe)
    parts = lay_out(output, metadata, plan.tensors, split)
    if dry_run:
        check_name(output)
        artefacts = tuple(Artefact(part.name, part.nbytes, "") for part in parts)
        return _card(model, _Work(model, plan), artefacts, {}, total=0.0, command=command, dry_run=True)
    _check_target(model, output, parts)
    hashes = start(model.hashes)

    def late() -> dict[str, MetadataEntry]:
        return {provenance.SOURCE_HASHES: provenance.source_hashes_entry(hashes.result())}

    work = _Work(model, plan, choices.get("importance") or {}, threads, measure, progress, made)
    with work.chunks() as chunks, work.clock.stage("all writing"):
        artefacts = write_gguf(output, metadata, plan.tensors, chunks, split=split, late=late)
    card = _card(model, work, artefacts, hashes.result(), total=perf_counter() - began, command=command)
    card = card if made is None else made.onto(card)
    save_card(card, output)
    return card


class Findings(Protocol):
    """Rows that a method has made, and what it adds to the Card."""

    def rows(self, name: str, start: int, stop: int) -> Bytes | None:
        """Packed rows of a matrix; None: encode it plainly."""
        ...

    def onto(self, card: Card) -> Card:
        """Return the Card with what was found."""
        ...


@dataclass
class _Slice:
    """Rows of one tensor on their way: `data` is there once they are encoded."""

    tensor: PlannedTensor
    start: int
    weight: Float32
    importance: Float32 | None
    data: Bytes


@dataclass
class _Work:
    """The stages of one run and what they found: reading thread → encoding thread → measuring and writing here."""

    model: Model
    plan: Plan
    importance: Importance = field(default_factory=dict)
    threads: int = 0
    measure: bool = True
    progress: Progress | None = None
    made: Findings | None = None
    clock: Clock = field(default_factory=Clock)
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def chunks(self) -> Iterator[Iterator[tuple[str, Bytes]]]:
        """Yield encoded rows in the order of the plan; the threads end with the block."""
        read = run_ahead(self._read())
        encoded = run_ahead(self._encode(read))
        try:
            yield self._measured(encoded)
        finally:
            encoded.close()
            read.close()

    def seconds(self, total: float) -> Seconds:
        """Return the time of each stage; writing is what the writer did between chunks and after the last."""
        found = {name: self.clock.seconds.get(name, 0.0) for name in ("reading", "encoding", "measuring")}
        writing = max(self.clock.seconds.get("all writing", 0.0) - self.clock.seconds.get("making chunks", 0.0), 0.0)
        rounded = {name: round(value, 6) for name, value in {**found, "writing": writing, "total": total}.items()}
        return Seconds(**rounded)

    def errors(self) -> tuple[TensorError, ...]:
        """Return the relative error of every tensor, in the order of the plan."""
        return tuple(TensorError(tensor.name, _relative(self.sums.get(tensor.name))) for tensor in self.plan.tensors)

    def _read(self) -> Iterator[_Slice]:
        nothing = np.empty((0, 0), np.uint8)
        for source, tensor in zip(self.model.tensors, self.plan.tensors, strict=True):
            importance = self.importance.get(tensor.name)
            for begin, end in slices_of(source):
                with self.clock.stage("reading"), _naming(tensor):
                    weight = source.read(begin, end)
                vector = importance
                if importance is not None and importance.ndim == 2:
                    vector = importance[begin // source.shape[-2]]
                yield _Slice(tensor, begin, weight, vector, nothing)

    def _encode(self, slices: Iterator[_Slice]) -> Iterator[_Slice]:
        search, threads = self.plan.recipe.search, self.threads
        for piece in slices:
            name, stop = piece.tensor.name, piece.start + len(piece.weight)
            done = None if self.made is None else self.made.rows(name, piece.start, stop)
            if done is not None:
                piece.data = done
                yield piece
                continue
            encode = FORMATS[piece.tensor.format].encode
            with self.clock.stage("encoding"), _naming(piece.tensor):
                piece.data = encode(piece.weight, importance=piece.importance, search=search, threads=threads)
            yield piece

    def _measured(self, encoded: Iterator[_Slice]) -> Iterator[tuple[str, Bytes]]:
        done, total = 0, self.plan.nbytes
        while True:
            with self.clock.stage("making chunks"):
                piece = next(encoded, None)
                if piece is not None and self.measure:
                    with self.clock.stage("measuring"):
                        self._measure(piece)
            if piece is None:
                return
            yield piece.tensor.name, piece.data
            done += piece.data.nbytes
            if self.progress is not None:
                self.progress(piece.tensor.name, done, total)

    def _measure(self, piece: _Slice) -> None:
        error, power = squared_error(piece.weight, piece.data, piece.tensor.format, self.threads)
        before = self.sums.get(piece.tensor.name, (0.0, 0.0))
        self.sums[piece.tensor.name] = (before[0] + error, before[1] + power)


def squared_error(weight: Float32, data: Bytes, name: str, threads: int = 0) -> tuple[float, float]:
    """Return the sums of (decode(data) - weight)² and of weight², in float64 over float32 sums of short stretches."""
    columns = weight.shape[1]
    step = max(1, MEASURED_WEIGHTS // columns)
    error = power = 0.0
    for begin in range(0, weight.shape[0], step):
        rows = weight[begin : begin + step].reshape(-1)
        power += float(np.dot(rows, rows))
        if name != "f32":
            decoded = FORMATS[name].decode(data[begin : begin + step], columns, threads=threads)
            difference = decoded.reshape(-1) - rows
            error += float(np.dot(difference, difference))
    return error, power


def slices_of(tensor: ModelTensor) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of at most SLICE_WEIGHTS weights (one row at least); none crosses from expert to expert."""
    step = max(1, SLICE_WEIGHTS // tensor.columns)
    group = tensor.shape[-2] if len(tensor.shape) > 2 else tensor.rows
    for first in range(0, tensor.rows, group):
        for begin in range(first, first + group, step):
            yield begin, min(begin + step, first + group)


@contextmanager
def _naming(tensor: PlannedTensor) -> Iterator[None]:
    """Put the tensor before the message of any error of ours."""
    try:
        yield
    except TersorError as error:
        raise type(error)(f"{tensor.name} {tensor.shape} as {tensor.format}: {error}") from error


def _relative(sums: tuple[float, float] | None) -> float | None:
    if sums is None:
        return None
    error, power = sums
    if power == 0:
        return 0.0 if error == 0 else None
    return math.sqrt(error / power)


def check_name(output: Path) -> None:
    """Raise SchemeError for a GGUF under a name by which no command would open it again."""
    if output.suffix != ".gguf":
        raise SchemeError(
            f"{output}: a language model is written as a GGUF, and other commands know one by its name: let it end in "
            ".gguf, or choose another --container, which is a folder"
        )


def _check_target(model: Model, output: Path, parts: Sequence[Part]) -> None:
    """Refuse before work begins what must fail at its end."""
    folder = output.parent
    for part in parts:
        check_file(folder / part.name, model.files)
    check_name(output)
    needed = sum(part.nbytes for part in parts)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MissingError(f"{folder}: the output takes {needed:,} bytes, {free:,} are free; make room or move it")


def _advice(plan: Plan) -> tuple[str, ...]:
    kind = file_type(plan.recipe.format)
    if kind.wants_importance and not plan.recipe.importance:
        return (f"{kind.name} is meant for use with an importance matrix; llama.cpp refuses to make it without one",)
    return ()


def _card(
    model: Model,
    work: _Work,
    artefacts: tuple[Artefact, ...],
    hashes: dict[str, str],
    *,
    total: float,
    command: str,
    dry_run: bool = False,
) -> Card:
    return Card(
        name=model.name,
        plan=work.plan,
        sources=hashes,
        source_bytes=source_bytes(model),
        artefacts=artefacts,
        errors=work.errors(),
        seconds=work.seconds(total),
        peak_memory_bytes=provenance.peak_memory_bytes(),
        versions=provenance.versions(),
        platform=provenance.machine(),
        command=command,
        dry_run=dry_run,
        notes=(*model.notes, *(model.tokenizer.notes if model.tokenizer else ()), *_advice(work.plan)),
    )
