"""A net with its weights in 16 bits, and the Card of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tersor.core.card import Artefact, Card, Seconds, TensorError
from tersor.core.plan import Plan, PlannedTensor, Recipe
from tersor.files.hashing import sha256
from tersor.graph.net import Net, constant
from tersor.graph.writing.halved import halved
from tersor.pipeline.nets.cards import relative_error
from tersor.pipeline.steps.cards import save_card
from tersor.pipeline.steps.provenance import machine, peak_memory_bytes, versions

__all__ = ["save_halved"]

FORMAT = "f16"


def save_halved(net: Net, path: Path, files: Mapping[str, str], command: str = "") -> tuple[Net, Card]:
    """Write `net` with weights in 16 bits, with its Card beside; return both.

    files  name → SHA-256 of what it was read from
    """
    began = time.perf_counter()
    made = halved(net)
    nbytes = made.save(path)
    rows = list(_tensors(net, set(map(str, made.graph.initializers))))
    card = Card(
        name=net.name,
        plan=Plan(net.name, "onnx", Recipe(format=FORMAT, mixture=""), tuple(row for row, _ in rows)),
        sources=dict(files),
        source_bytes=net.weight_bytes,
        artefacts=(Artefact(path.name, nbytes, sha256(path)),),
        errors=tuple(error for _, error in rows),
        seconds=Seconds(total=time.perf_counter() - began),
        peak_memory_bytes=peak_memory_bytes(),
        versions=versions(),
        platform=machine(),
        command=command,
    )
    save_card(card, path)
    return made, card


def _tensors(net: Net, kept: set[str]) -> Iterator[tuple[PlannedTensor, TensorError]]:
    """Yield what became of every weight, and what that cost; `kept`: names that are there as before."""
    for name, value in net.graph.initializers.items():
        numbers = constant(value)
        if numbers is None:
            continue
        is_kept = name in kept
        kind = str(numbers.dtype) if is_kept else FORMAT
        bytes_each = numbers.dtype.itemsize if is_kept else 2
        row = PlannedTensor(
            str(name), tuple(numbers.shape), str(numbers.dtype), kind, "kept: small" if is_kept else FORMAT, "",
            bytes_each * math.prod(numbers.shape),
        )  # fmt: skip
        yield row, TensorError(str(name), 0.0 if is_kept else relative_error(numbers, numbers.astype(np.float16)))
