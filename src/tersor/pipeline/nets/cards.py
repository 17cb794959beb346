"""The Card of a net on integers: every tensor and what it became, every operator and what it lost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

import numpy as np

from tersor.core.card import Card, Seconds, TensorError
from tersor.core.evaluation import LayerError
from tersor.core.plan import Plan, PlannedTensor, Recipe
from tersor.graph.corrections.layers import operator_noise
from tersor.graph.net import constant
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.search import Returned
from tersor.graph.sessions import Feeds
from tersor.graph.training.train import Trained
from tersor.graph.writing.halved import is_halved
from tersor.graph.writing.stored import nbytes_of
from tersor.pipeline.steps.provenance import machine, peak_memory_bytes, versions

__all__ = ["card_of", "notes_of", "operator_errors", "relative_error"]

ENGINES = ("onnx", "onnxruntime")
SHOWN = 8
RUN = {
    "static": "run on integers",
    "dynamic": "run on integers, activations rounded to the range of each batch",
    "float": "have weights of integers, decoded to meet float activations",
}
"""What operators do, by the kind of activations."""


def card_of(
    quantized: QuantizedNet,
    files: Mapping[str, str],
    name: str,
    calibration: str,
    *,
    began: float,
    source_bytes: int,
    trained: Trained | None = None,
) -> Card:
    """Return the Card of a net that is not written yet.

    files        name → SHA-256 of what was read
    name         of the format
    calibration  in words
    source_bytes  of all numbers that are stored in the float net
    began        when the work began, as `time.perf_counter` has it
    trained      how training went, None without
    """
    recipe = quantized.recipe
    rows = list(_tensors(quantized))
    method = f"ptq for {recipe.engine}, ranges {recipe.ranges}, weights {recipe.weights}"
    if trained is not None:
        method += f"; {_training(trained)}"
    made = Recipe(format=name, mixture="", method=method, calibration=calibration)
    found = {**versions(), **{package: version(package) for package in ENGINES}}
    return Card(
        name=quantized.source.name,
        plan=Plan(quantized.source.name, "onnx", made, tuple(row for row, _ in rows)),
        sources=dict(files),
        source_bytes=source_bytes,
        artefacts=(),
        errors=tuple(error for _, error in rows),
        seconds=Seconds(total=time.perf_counter() - began),
        peak_memory_bytes=peak_memory_bytes(),
        versions=found,
        platform=machine(),
        command="",
    )


def _training(trained: Trained) -> str:
    best = f"the best of them {trained.best + 1}" if trained.best >= 0 else "none of them better than ptq alone"
    return f"qat, {len(trained.epochs)} epochs, {best}"


def _tensors(quantized: QuantizedNet) -> Iterator[tuple[PlannedTensor, TensorError]]:
    """Yield every weight of the float net with what became of it."""
    stored = {**quantized.weights, **quantized.tables}
    sites = {**quantized.placement.weights, **quantized.placement.tables}
    weights = {site.value: name for name, site in sites.items()}
    small = set(quantized.recipe.halved)
    biases = {site.value for site in quantized.placement.biases.values()}
    kept = {row.node: row.reason for row in quantized.placement.kept}
    for name, value in quantized.source.graph.initializers.items():
        numbers = constant(value)
        if numbers is None or numbers.dtype != np.float32:
            continue
        shape = tuple(numbers.shape)
        if name in weights:
            rounded = stored[weights[name]]
            scheme = rounded.quantizer.scheme
            shared = "tensor" if scheme.axis is None else "channel" if scheme.block is None else f"g{scheme.block}"
            form = f"int{scheme.bits}-{shared}-sym"
            nbytes = nbytes_of(rounded, quantized.placement, quantized.net)
            row = PlannedTensor(name, shape, "F32", form, weights[name], "", nbytes)
            yield row, TensorError(name, relative_error(numbers, rounded.values), method=quantized.recipe.weights)
        elif name in biases:
            yield PlannedTensor(name, shape, "F32", "int32", "bias", "", 4 * numbers.size), TensorError(name, None)
        else:
            reason = next(
                (f"kept: {kept[str(use.node.name)]}" for use in value.uses() if use.node.name in kept), "float"
            )
            is_small = is_halved(numbers) and any(str(use.node.name) in small for use in value.uses())
            kind, each = ("f16", 2) if is_small else ("f32", 4)
            error = relative_error(numbers, numbers.astype(np.float16)) if is_small else 0.0
            yield PlannedTensor(name, shape, "F32", kind, reason, "", each * numbers.size), TensorError(name, error)


def relative_error(before: np.ndarray, after: np.ndarray) -> float | None:
    """Return rms(after - before) / rms(before); None for zeros."""
    power = float(np.square(before.astype(np.float64)).sum())
    return math.sqrt(float(np.square(after.astype(np.float64) - before).sum()) / power) if power else None


def operator_errors(quantized: QuantizedNet, batches: Sequence[Feeds]) -> tuple[LayerError, ...]:
    """Return what integers did to the output of every operator on integers, everything before it on integers too."""
    rows = operator_noise(quantized, batches)
    found = {row.node: row.output_db if math.isfinite(row.output_db) else None for row in rows}
    return tuple(
        LayerError(row.node, row.operator, None, found[row.node], None, None, arriving_db=found[row.node])
        for row in rows
    )


def notes_of(
    quantized: QuantizedNet, trained: Trained | None, returned: Returned | None, max_drop: float | None
) -> tuple[str, ...]:
    """Return what a reader of the Card must know: what stays in float and why, and what was tried."""
    notes = []
    if trained is not None:
        notes.append(_training(trained))
    precision, integer = quantized.placement.precision, len(quantized.placement.weights)
    notes.append(
        f"{integer} operators with weights {RUN[precision.activations]}, {len(quantized.placement.kept)} stay in float"
    )
    if quantized.tables:
        notes.append(f"{len(quantized.tables)} tables are rows of 8 bits, decoded when they are taken")
    notes += [f"{row.node} ({row.operator}) stays in float: {row.reason}" for row in quantized.placement.kept]
    if returned is not None:
        met = "met" if returned.meets else "NOT met"
        notes.append(
            f"largest drop of {max_drop:g} points {met}: {returned.drop:.2f} after {len(returned.trials)} trials"
        )
        if returned.wide:
            notes.append(f"weights got 8 bits, the most sensitive first: {', '.join(returned.wide)}")
        if returned.left:
            notes.append(f"went back to float, the most sensitive first: {', '.join(returned.left)}")
        worst = [f"{row.node} {row.gain:.0%}" for row in returned.ranking[:SHOWN]]
        if worst:
            notes.append(f"share of the output's noise that goes with each operator: {', '.join(worst)}")
    return tuple(notes)
