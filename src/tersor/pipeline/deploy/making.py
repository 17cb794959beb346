"""An artefact made as another was: full precision, the Card of the other, and data to calibrate with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tersor.core.card import Card
from tersor.core.errors import SchemeError
from tersor.deploy.gating.record import GateRecord
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.conversion import quantize
from tersor.pipeline.deploy.gate import gate
from tersor.pipeline.deploy.net_gate import gate_net
from tersor.pipeline.nets.cards import RUN
from tersor.pipeline.nets.data import calibration_batches
from tersor.pipeline.nets.quantizing import MIXED, NetHow, quantize_network
from tersor.pipeline.planning.plan_file import ONNX, PlanFile

__all__ = ["gate_fresh", "make_fresh"]

_METHOD = re.compile(r"ptq for (\S+), ranges (\S+), weights (\w+)")
_DROP = re.compile(r"largest drop of ([\d.]+) points")
COMMAND = "tersor refresh"
SHORTEST = 64
"""Tokens of a sequence to calibrate a language model with."""


def make_fresh(full: Path, card: Card, data: Sequence[Path], output: Path) -> None:
    """Write what `card` describes, calibrated with `data`, to `output`.

    data  files, all of one kind: .npz with an array for each input of a net, or UTF-8 text for a language model

    Raises SchemeError for what nobody but its maker can make again: a net that was trained, say.
    """
    if full.suffix == ".onnx":
        _make_net(full, card, data, output)
        return
    made = card.plan.recipe
    if made.method == "rtn" and not made.importance:
        raise SchemeError(f"{card.name}: was rounded without any data, so that recent traffic changes nothing in it")
    text = output.with_suffix(".calibration.txt")
    text.write_bytes(b"\n\n".join(file.read_bytes() for file in data))
    text.chmod(0o600)
    try:
        method = None if made.method == "rtn" else made.method
        recent = Calibration(text, shortest=SHORTEST)  # prompts are often short, and fifty of them a page
        quantize(str(full), made.format, output=output, method=method, calibration=recent, command=COMMAND)
    finally:
        text.unlink()


def _make_net(full: Path, card: Card, data: Sequence[Path], output: Path) -> None:
    made = card.plan.recipe
    found = _METHOD.match(made.method)
    if found is None or "qat" in made.method:
        raise SchemeError(f"{card.name}: was made by {made.method!r:.80}, which its maker has to do again")
    engine, ranges, weights = found.groups()
    notes = " ".join(card.notes)
    activations = next((kind for kind, words in RUN.items() if words in notes), "static")
    drop = _DROP.search(notes)
    source = Net.open(full)
    batches: list[Any] = [batch for file in data for batch in calibration_batches(file, source)]
    chosen = {node: kind for node, _, kind in (text.rpartition("=") for text in made.tensor_formats)}
    plan = PlanFile(chosen, container=ONNX) if made.format == MIXED else None
    how = NetHow(
        calibration=batches,
        recipe=replace(Recipe(), engine=engine, ranges=ranges, weights=weights),
        activations=activations,
        plan=plan,
        max_drop=None if drop is None else float(drop[1].rstrip(".")),
        bench=False,
        threads=1,
        command=COMMAND,
    )
    quantize_network(full, made.format, how).save(output)


def gate_fresh(fresh: Path, full: Path, present: Path, held: Path) -> GateRecord:
    """Judge a fresh artefact on recent requests that it was not calibrated with."""
    if fresh.suffix == ".onnx":
        data = calibration_batches(held, Net.open(full))
        return gate_net(fresh, against=full, present=present, data=data, command=COMMAND)
    return gate(fresh, against=full, data=held, command=COMMAND)
