"""Quantized matrices into a Hugging Face checkpoint: planned in GGUF names, written in the checkpoint's own.

A checkpoint that is quantized already is a source too: `convert` keeps its codes wherever the asked format has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol, Unpack, cast

import numpy as np

from tersor.containers.hf.table import container, format_for
from tersor.containers.hf.writer import CheckpointSource, write_checkpoint
from tersor.containers.mixtures import check_patterns, parse_overrides
from tersor.core.arrays import Bytes, Float32
from tersor.core.card import Card, Seconds, TensorError
from tersor.core.errors import SchemeError, TersorError, UnsupportedError
from tersor.core.format import Format
from tersor.core.plan import Plan, PlannedTensor, Recipe
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import Checkpoint
from tersor.files.dtypes import Numbers
from tersor.files.safetensors import TensorInfo
from tersor.formats import get
from tersor.formats.integer import IntegerRules
from tersor.models.model import Model, ModelTensor
from tersor.models.quantized_checkpoint import open_quantized
from tersor.models.transforms import Source, origin
from tersor.pipeline.quantize import Findings
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.cards import save_card
from tersor.pipeline.steps.lossless import kept_codes, quantized_source
from tersor.pipeline.steps.planning import Choices, UserChoices
from tersor.pipeline.steps.stored import source_bytes

__all__ = ["CHOSEN", "FUSED", "convert", "plan_checkpoint", "plan_conversion", "round_plainly", "write_quantized"]

ROWS_AT_ONCE = 1 << 22
PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
CHOSEN = "matrix of a block"
KEPT = "quantized in the source"


class CheckpointFindings(Findings, Protocol):
    """What a method has made, for a container in which not every tensor is planned."""

    def changed(self, quantized: Collection[str]) -> Iterator[tuple[str, Float32]]:
        """Yield what changed besides the matrices of `quantized`: GGUF name and values, [rows, columns]."""
        ...


@dataclass
class _Changed:
    """The source checkpoint with some tensors replaced, in their own types."""

    tensors: dict[str, TensorInfo]
    checkpoint: CheckpointSource
    values: dict[str, Float32]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        if name in self.values:
            return self.values[name][start:stop]
        return self.checkpoint.read(name, start, stop)


def _at_sources(
    tensors: dict[str, ModelTensor], changed: Iterator[tuple[str, Float32]]
) -> Iterator[tuple[str, Float32]]:
    """Yield changed tensors under the checkpoint's names and as it stores them."""
    made: dict[str, Float32] = {}
    for name, values in changed:
        places = origin(tensors[name].values, 0, tensors[name].rows)
        stored = values / places.factor[:, None] - places.shift[:, None]
        for number, source in enumerate(places.sources):
            taken = places.which == number
            whole = made.setdefault(_name(source), np.zeros(source.shape, np.float32))
            whole.reshape(-1, whole.shape[-1])[places.row[taken]] = stored[taken]
    yield from made.items()


def convert(model: Model, name: str, output: Path, where: str, *, command: str = "") -> Card:
    """Write a model whose source is quantized as format `name` in container `where`, codes verbatim, with its Card.

    A matrix whose grid is not the asked one is rounded again, and the Card says so. SchemeError where the source is
    not quantized, and what planning and writing raise.
    """
    plan = plan_conversion(model, name, where)
    found = kept_codes(model, plan)
    assert found is not None, "planned as quantized"
    with contextlib.closing(found):
        return write_quantized(model, plan, output, where, found, command=command)


def plan_conversion(model: Model, name: str, where: str) -> Plan:
    """Decide what `convert` makes of every tensor; errors as there."""
    folder = quantized_source(model)
    if folder is None:
        raise SchemeError(f"{model.name} is not quantized, so there are no codes to keep")
    with contextlib.closing(open_quantized(folder, model.weights)) as source:
        held = {tensor: source.format(tensor) for tensor in source.quantized_names}
    return plan_checkpoint(model, name, where, Choices(), held)


def round_plainly(
    model: Model,
    name: str,
    output: Path,
    where: str,
    *,
    activations: bool = False,
    command: str = "",
    **choices: Unpack[UserChoices],
) -> Card:
    """Write a model as format `name` in container `where`, each weight rounded to its nearest, with its Card.

    activations  have engines round activations too
    Errors are those of planning and writing.
    """
    plan = plan_checkpoint(model, name, where, cast("Choices", choices))
    return write_quantized(model, plan, output, where, _Rounded(), activations=activations, command=command)


class _Rounded:
    """Findings of no method: every row is rounded when it is written."""

    def rows(self, name: str, start: int, stop: int) -> Bytes | None:
        """Return None: all are to be rounded."""
        del name, start, stop
        return None

    def changed(self, quantized: Collection[str]) -> Iterator[tuple[str, Float32]]:
        """Yield nothing."""
        del quantized
        yield from ()

    def onto(self, card: Card) -> Card:
        """Return the Card as it is."""
        return card


FUSED = (
    ("attn_q", "attn_k", "attn_v"),
    ("ffn_gate", "ffn_up"),
    ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
)
"""Matrices that vLLM multiplies as one, and so reads in one format."""


def plan_checkpoint(
    model: Model, name: str, where: str, choices: Choices, held: Mapping[str, Format] | None = None
) -> Plan:
    """Decide which matrices of the blocks take format `name` in container `where`; embeddings and output stay.

    choices  of these `tensor_formats` says which matrices take another format, where the container allows that
    held     the formats of matrices that are quantized in the source, by its names: kept where they are what is asked

    A row that does not divide into groups stays as it is, and the plan says so; SchemeError for a format that the
    container does not hold.
    """
    container(where)
    if any(file.suffix == ".gguf" for file in model.files):
        raise UnsupportedError(f"{where} is written from a checkpoint folder; {model.name} is a GGUF")
    rows = []
    overrides = parse_overrides(choices.get("tensor_formats", ()), lambda text: get(text).name)
    has_zeros = any(not _is_symmetric(fmt) for fmt in (held or {}).values()) and not container(where).mixes
    for tensor in model.tensors:
        source = PLAIN.get(tensor.source_dtype, "f32")
        chosen, reason, wanted = source, "kept as it is", ""
        own = (held or {}).get(tensor.sources[0]) if tensor.sources else None
        if own is not None:
            _check_unchanged(tensor, where)
            chosen, reason, wanted = _of_source(own, get(name), where, has_zeros=has_zeros)
        elif tensor.layer is not None and not tensor.must_be_f32 and not held:
            asked = next((one.format for one in overrides if one.pattern.search(tensor.name)), name)
            fmt = format_for(where, get(asked), tensor.source_dtype)
            chosen, reason, wanted = _chosen(tensor, fmt.name, source)
        nbytes = tensor.rows * get(chosen).row_bytes(tensor.columns)
        rows.append(PlannedTensor(tensor.name, tensor.shape, tensor.source_dtype, chosen, reason, wanted, nbytes))
    if all(row.reason not in (CHOSEN, KEPT) for row in rows):
        why = next((f": {row.name} {row.shape}: {row.reason}" for row in rows if row.wanted), "")
        raise SchemeError(f"no matrix of {model.name} can be {name} in {where}{why}")
    check_patterns(overrides, [row.name for row in rows if row.reason == CHOSEN])
    kinds = sorted({row.format for row in rows if row.reason == CHOSEN})
    if len(kinds) > 1 and not container(where).mixes:
        raise SchemeError(f"all matrices of {where} take one format, not {', '.join(kinds)}; compressed-tensors mixes")
    _check_fused(rows)
    recipe = Recipe(
        format=f"{name} in {where}",
        mixture="",
        tensor_formats=tuple(choices.get("tensor_formats", ())),
        search=choices.get("search", "best"),
        method=choices.get("method", "rtn"),
        calibration=choices.get("calibration", ""),
    )
    return Plan(model.name, model.architecture, recipe, tuple(rows))


def _check_fused(rows: Sequence[PlannedTensor]) -> None:
    """Refuse formats that differ among matrices that engines multiply as one."""
    formats = {row.name.removesuffix(".weight"): row.format for row in rows if row.reason == CHOSEN}
    for name, kind in formats.items():
        stem, stored = name.rpartition(".")[::2]
        fused = next((row for row in FUSED if stored == row[0]), ())
        other = next((one for one in fused if formats.get(f"{stem}.{one}", kind) != kind), None)
        if other is not None:
            raise SchemeError(
                f"{stem}: {stored} as {kind} and {other} as {formats[f'{stem}.{other}']}: engines multiply "
                f"{', '.join(fused)} as one, give them one format"
            )


def _chosen(tensor: ModelTensor, name: str, source: str) -> tuple[str, str, str]:
    if not get(name).holds(tensor.columns):
        return source, f"kept as it is: {tensor.columns} columns do not divide into groups of {get(name).block}", name
    places = origin(tensor.values, 0, tensor.rows)
    if not all(isinstance(one, Source) for one in places.sources):
        return source, "kept as it is: it is computed, not stored", name
    if (places.factor != 1).any() or (places.shift != 0).any():
        return source, "kept as it is: the engine needs it scaled", name
    return name, CHOSEN, ""


def _of_source(own: Format, wanted: Format, where: str, *, has_zeros: bool) -> tuple[str, str, str]:
    """Return the format of a matrix that the source has quantized: its own, if that is what was asked for.

    has_zeros  whether some matrix has zero points and the container knows only one format for all
    """
    rules = own.rules
    is_same = own.bits == wanted.bits and own.block == wanted.block and (own.family == wanted.family)
    if is_same and (_is_symmetric(own) or not _is_symmetric(wanted)):
        fmt = format_for(where, own, "")
        if has_zeros and isinstance(rules, IntegerRules) and rules.symmetric:
            fmt = get(fmt.name.replace("-sym", "-asym"))
        return fmt.name, KEPT, ""
    return format_for(where, wanted, "").name, CHOSEN, ""


def _check_unchanged(tensor: ModelTensor, where: str) -> None:
    """Refuse a quantized matrix that is read with other numbers than the checkpoint has."""
    places = origin(tensor.values, 0, tensor.rows)
    if (places.factor != 1).any() or (places.shift != 0).any():
        raise UnsupportedError(f"{tensor.name} is read scaled, so its codes cannot go into {where}: write a GGUF")


def _is_symmetric(fmt: Format) -> bool:
    return not isinstance(fmt.rules, IntegerRules) or fmt.rules.symmetric


def write_quantized(
    model: Model,
    plan: Plan,
    output: Path,
    where: str,
    findings: CheckpointFindings,
    *,
    activations: bool = False,
    command: str = "",
) -> Card:
    """Write the checkpoint folder `output` with its Card in it, and return the Card."""
    began = perf_counter()
    folder = model.folder
    if folder is None:
        raise SchemeError(f"{model.name} is no checkpoint folder, so there is none to write anew")
    paths = list(model.weights)
    checkpoint = open_quantized(folder, paths) if quantized_source(model) else Checkpoint(paths)
    try:
        errors: dict[str, float] = {}
        tensors = {tensor.name: tensor for tensor in model.tensors}
        quantized = [row for row in plan.tensors if row.reason in (CHOSEN, KEPT)]
        formats = {}
        for row in quantized:
            for one in origin(tensors[row.name].values, 0, tensors[row.name].rows).sources:
                formats[_name(one)] = get(row.format)
        names = {row.name for row in quantized}
        source = _Changed(checkpoint.tensors, checkpoint, dict(_at_sources(tensors, findings.changed(names))))
        stream = _by_source(quantized, tensors, findings, errors, {n: checkpoint.tensors[n].shape for n in formats})
        artefacts = write_checkpoint(folder, source, formats, stream, output, name=where, activations=activations)
    finally:
        checkpoint.close()
    card = Card(
        name=model.name,
        plan=plan,
        sources=model.hashes(),
        source_bytes=source_bytes(model),
        artefacts=artefacts,
        errors=tuple(TensorError(row.name, errors.get(row.name)) for row in plan.tensors),
        seconds=Seconds(total=round(perf_counter() - began, 6)),
        peak_memory_bytes=provenance.peak_memory_bytes(),
        versions=provenance.versions(),
        platform=provenance.machine(),
        command=command,
        notes=model.notes,
    )
    card = findings.onto(card)
    save_card(card, output / output.name)
    return card


def _name(source: object) -> str:
    if not isinstance(source, Source):
        raise SchemeError("a tensor that is computed cannot be quantized")
    return source.name


def _by_source(
    rows: list[PlannedTensor],
    tensors: dict[str, ModelTensor],
    findings: Findings,
    errors: dict[str, float],
    shapes: dict[str, tuple[int, ...]],
) -> Iterator[tuple[str, QuantizedTensor]]:
    """Yield the checkpoint's matrices, each once its last row has come; rows stand in the checkpoint's order."""
    open_matrices: dict[str, tuple[Bytes, int]] = {}
    for row in rows:
        tensor, fmt = tensors[row.name], get(row.format)
        error = power = 0.0
        step = tensor.rows if fmt.span == "tensor" else max(1, ROWS_AT_ONCE // tensor.columns)
        for start in range(0, tensor.rows, step):
            stop = min(start + step, tensor.rows)
            weight = tensor.read(start, stop)
            try:
                found = findings.rows(row.name, start, stop)
                data = fmt.encode(weight) if found is None else found
            except TersorError as fault:
                raise type(fault)(f"{row.name} {row.shape} as {row.format}: {fault}") from fault
            difference = (fmt.decode(data, tensor.columns) - weight).reshape(-1)
            error += float(np.dot(difference, difference))
            power += float(np.dot(weight.reshape(-1), weight.reshape(-1)))
            places = origin(tensor.values, start, stop)
            for number, source in enumerate(places.sources):
                name, taken = _name(source), places.which == number
                matrix, left = open_matrices.get(name) or _opened(shapes[name], fmt.row_bytes(tensor.columns))
                matrix[places.row[taken]] = data[taken]
                open_matrices[name] = (matrix, left - int(taken.sum()))
        errors[row.name] = (error / power) ** 0.5 if power else 0.0
        for name in [name for name, (_, left) in open_matrices.items() if left == 0]:
            matrix, _ = open_matrices.pop(name)
            yield name, QuantizedTensor(fmt, shapes[name], matrix)


def _opened(shape: tuple[int, ...], row_bytes: int) -> tuple[Bytes, int]:
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    return np.zeros((rows, row_bytes), np.uint8), rows
