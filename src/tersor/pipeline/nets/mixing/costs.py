"""What each format costs each operator of a net: one at a time in the float net, and then mixes of all of them.

Bytes are those by which a file grows: of a weight, and of what rounds and decodes, which neighbours may share. A
divergence is of second order in what rounding changes, so that costs of operators add up while the noise that one
makes is unrelated to another's. How nearly they do is measured: mixes of several sizes are made and held against their
sums, and predictions are corrected by the ratio (`Analysis.predicted`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tersor.analyse.allocation import Frontier
from tersor.analyse.analysis import AnalysedTensor, Analysis, Candidate, Measured
from tersor.analyse.ranges import ranges_of
from tersor.graph.net import Array, Net, constant
from tersor.graph.observe import Progress
from tersor.graph.placement.sites import TABLE, WEIGHT
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.rebuild import FORMATS, Roundings
from tersor.graph.weights import RoundedWeight
from tersor.graph.writing.halved import is_halved
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.nets.cards import relative_error
from tersor.pipeline.nets.mixing.divergence import Yardstick
from tersor.pipeline.planning.plan_file import ONNX

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Choice", "Operators", "analyse_net", "method_of", "operators_of"]

SHARES = (0.02, 0.12, 0.3, 0.55, 0.9)
"""Where between the smallest and the largest mix the prediction is held against a measurement."""
FLOAT = "fp32"


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Operators that read one weight, and so take one format: their names, the weight, and what they may take."""

    nodes: tuple[str, ...]
    weight: Array
    formats: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Operators:
    """The operators of a net that have a choice, by the name of the first of those that share a weight."""

    roundings: Roundings
    choices: Mapping[str, Choice]

    def spread(self, formats: Mapping[str, str]) -> dict[str, str]:
        """Return formats by operator, given those of the first of each choice."""
        return {node: kind for name, kind in formats.items() for node in self.choices[name].nodes}

    def net(self, formats: Mapping[str, str]) -> QuantizedNet:
        """Return the net in these formats, by the first of each choice; what is not named is in float."""
        return self.roundings.mixed(self.spread({**dict.fromkeys(self.choices, FLOAT), **formats}))

    def rounded(self, name: str, kind: str) -> RoundedWeight | None:
        """Return the weight as integers; None where the format is a float."""
        if FORMATS[kind] is None:
            return None
        net, node = self.roundings.net_of(kind), self.choices[name].nodes[0]
        return net.weights[node] if node in net.weights else net.tables[node]


def operators_of(roundings: Roundings, formats: Sequence[str]) -> Operators:
    """Return the operators that have a choice among `formats`, and what each may take."""
    finest = roundings.finest
    sites = {**finest.placement.weights, **finest.placement.tables}
    nodes = {str(node.name): node for node in finest.source.nodes}
    sharing: dict[str, list[str]] = {}
    for name in (name for name in nodes if name in sites):
        sharing.setdefault(sites[name].value, []).append(name)
    choices = {}
    for names in sharing.values():
        weight = constant(nodes[names[0]].inputs[TABLE if names[0] in finest.placement.tables else WEIGHT])
        assert weight is not None, "a weight site without a constant"
        held = tuple(kind for kind in formats if _may_take(roundings, names[0], kind, weight))
        if held:
            choices[names[0]] = Choice(tuple(names), weight, held)
    return Operators(roundings, choices)


def _may_take(roundings: Roundings, name: str, kind: str, weight: Array) -> bool:
    bits = FORMATS[kind]
    if bits is None:
        return kind == FLOAT or is_halved(weight)
    if name in roundings.finest.placement.tables:
        return bits == roundings.finest.tables[name].quantizer.scheme.bits
    return bits in roundings.nets and name in roundings.nets[bits].weights


def method_of(quantized: QuantizedNet) -> str:
    """Return how the net is rounded, in words: part of what a saved analysis is recognized by."""
    recipe = quantized.recipe
    return f"ptq for {recipe.engine}, ranges {recipe.ranges}, activations {recipe.activations}"


def analyse_net(
    operators: Operators,
    yardstick: Yardstick,
    *,
    net: Net,
    sources: Mapping[str, str],
    calibration: str,
    progress: Progress | None = None,
) -> Analysis:
    """Return what every format costs every operator, with mixes held against their sums.

    net       in float, as its owner has it
    sources   name → SHA-256 of what it was read from
    Runs the net once for each operator and format.
    """
    began = time.perf_counter()
    tensors = tuple(_tensors(operators, yardstick, progress))
    alone = time.perf_counter()
    chosen = sum(choice.weight.nbytes for choice in operators.choices.values())
    numbers = [constant(value) for value in net.graph.initializers.values()]
    found = Analysis(
        model=net.name,
        architecture=ONNX,
        sources=dict(sources),
        method=method_of(operators.roundings.finest),
        calibration=calibration,
        draws=0,
        tokens=yardstick.items,
        kept_bytes=max(net.weight_bytes - chosen, 0),
        container=ONNX,
        weights=sum(each.size for each in numbers if each is not None and each.dtype.kind == "f"),
        tensors=tensors,
        together={},
    )
    measured = tuple(_mixes(found, operators, yardstick))
    seconds = {"alone": round(alone - began, 3), "mixes": round(time.perf_counter() - alone, 3)}
    return replace(found, measured=measured, seconds=seconds)


def _tensors(operators: Operators, yardstick: Yardstick, progress: Progress | None) -> list[AnalysedTensor]:
    rows, total = [], sum(len(choice.formats) for choice in operators.choices.values())
    done, whole = 0, len(operators.net({}).net.to_bytes())
    for name, choice in operators.choices.items():
        candidates = []
        for kind in choice.formats:
            kl, nbytes = 0.0, choice.weight.nbytes
            if kind != FLOAT:
                made = operators.net({name: kind}).net
                kl = yardstick.divergence(made)
                nbytes = max(nbytes + len(made.to_bytes()) - whole, 1)
            rounded = operators.rounded(name, kind)
            values = choice.weight if rounded is None else rounded.values
            after = values.astype(np.float16).astype(np.float32) if kind == "fp16" else values
            error = relative_error(choice.weight, after) or 0.0
            method = operators.roundings.net_of(kind).recipe.weights if rounded is not None else ""
            candidates.append(Candidate(kind, nbytes, kl, error, None, None, method))
            done += 1
            if progress is not None:
                progress("sensitivity", done, total)
        ranges = ranges_of(torch.from_numpy(np.array(choice.weight)), None)
        rows.append(AnalysedTensor(name, tuple(choice.weight.shape), ranges, tuple(candidates)))
    return rows


def _mixes(found: Analysis, operators: Operators, yardstick: Yardstick) -> list[Measured]:
    if not found.tensors:
        return []
    frontier = Frontier(found.options({name: (name,) for name in operators.choices}))
    span, rows = frontier.largest - frontier.smallest, {}
    for share in SHARES:
        mix = frontier.at(round(frontier.smallest + share * span))
        if mix.loss <= 0 or mix.nbytes in rows:
            continue
        bits = 8 * (mix.nbytes + found.kept_bytes) / max(found.weights, 1)
        kl = yardstick.divergence(operators.net(mix.formats).net)
        rows[mix.nbytes] = Measured("mix", f"{bits:.2f} bits per weight", mix.loss, kl)
    return list(rows.values())
