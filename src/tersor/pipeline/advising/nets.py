"""The ladder of nets with activations: 16 bits, weights alone, integers, operators back in float, fewer bits, training.

What is lost is accuracy on labelled data, in percentage points, paired item by item; without labels it is agreement
with the float net on the calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.card import Card
from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.core.evaluation import Metric
from tersor.evaluation.nets.accuracy import evaluate_net
from tersor.evaluation.nets.latency import race_nets
from tersor.graph.net import Net
from tersor.graph.observe import batches_of
from tersor.graph.sessions import Feeds, one
from tersor.pipeline.advising.ladder import Goal, Rung
from tersor.pipeline.advising.made import Made
from tersor.pipeline.nets.data import calibration_batches
from tersor.pipeline.nets.halving import save_halved
from tersor.pipeline.nets.judge import scores_by
from tersor.pipeline.nets.quantizing import NetHow, labelled_data, open_source, quantize_network
from tersor.pipeline.nets.training import Training

__all__ = ["NetTask", "rungs_of_net"]

PERCENT = 100.0
LITTLE = 0.6
"""Share of the bytes that may be left of 8-bit weights; 16 bits leave half."""
GAINS: Mapping[str, str] = {
    "f16": "weights in 16 bits: half of the file, the same computation",
    "weights": "weights of 8 bits that are decoded to meet float activations: a quarter of the file, no faster",
    "ptq": "weights and activations of integers: as small, and faster where the engine has integer instructions",
    "mixed": "the fewest operators that lose most go back to float",
    "qat": "the net is trained while it is rounded: as small and as fast, for hours of training",
}
"""What each rung does."""


@dataclass(frozen=True, eq=False)
class NetTask:
    """What all rungs share.

    net         what `quantize_network` takes
    how         calibration, labelled data, preparation and the like; `training` trains where PTQ loses too much
    needs_speed whether the goal asks for speed; it is measured beside float, one item at a time
    """

    net: Any
    how: NetHow
    needs_speed: bool = False

    @cached_property
    def opened(self) -> tuple[Net, dict[str, str]]:
        """The net in float, and the files that it came from."""
        return open_source(self.net, self.how)

    @property
    def source(self) -> Net:
        """The net in float."""
        return self.opened[0]

    @cached_property
    def first(self) -> Feeds:
        """The first item to calibrate with."""
        data = calibration_batches(self.how.calibration, self.source, self.how.preparation, images=self.how.images)
        feeds = next(iter(batches_of(self.source, data, 1)), None)
        if feeds is None:
            raise SchemeError("the calibration data is empty: give at least one batch")
        return one(self.source, feeds)

    def judged_by(self) -> Iterable[tuple[Any, Any]]:
        """Batches of inputs and labels; no labels: None."""
        if self.how.data is not None:
            return labelled_data(self.how.data, self.how, self.source)
        data = calibration_batches(self.how.calibration, self.source, self.how.preparation, images=self.how.images)
        return [(feeds, None) for feeds in batches_of(self.source, data, self.how.limit)]

    def measured(self, net: Net, name: str, card: Card | None = None) -> Made:
        """Return what a net loses and how fast it is, beside the float one; what its Card has is not measured again."""
        found = next(iter(card.evaluations if card is not None else ()), None)
        if found is None:
            scores = [scores_by(each, self.how.threads) for each in (net, self.source)]
            found = evaluate_net(scores[0], against=scores[1], data=self.judged_by())
        loss = _points(found.metric("accuracy_drop")) or _lost(found.metric("agreement"))
        if loss is None:
            raise MissingError(f"{self.source.name}: no classes to judge by: the first output must be [items, classes]")
        speed = _speed(net, self.source, self.first, self.how.threads) if self.needs_speed else None
        return Made(name, len(net.to_bytes()), loss, speed, () if card is None else card.notes)


def rungs_of_net(task: NetTask, goal: Goal) -> tuple[Rung, ...]:
    """Return the rungs for a net, the largest first."""
    return tuple(_rungs(task, goal))


def _rungs(task: NetTask, goal: Goal) -> Iterator[Rung]:
    yield Rung("f16 weights", GAINS["f16"], 0, _halved(task), task.source.weight_bytes // 2)
    yield Rung("int8 weights", GAINS["weights"], 1, _quantized(task, "int8", activations="float"), is_bound=False)
    for level, name in enumerate(("int8", "int4"), 2):
        yield Rung(f"{name}, ptq", GAINS["ptq"], level, _quantized(task, name))
        mixed = {"max_drop": goal.most_loss, "force": True}
        yield Rung(f"{name}, ptq, mixed precision", GAINS["mixed"], level, _quantized(task, name, **mixed))
        yield Rung(f"{name}, qat", GAINS["qat"], level, _trained(task, name))


def _halved(task: NetTask) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        path = folder / f"{task.source.name}-f16.onnx"
        net, _ = save_halved(task.source, path, task.opened[1], "tersor advise")
        return task.measured(net, path.name)

    return make


def _quantized(task: NetTask, name: str, **changes: Any) -> Callable[[Path], Made]:
    how = replace(task.how, training=None, bench=False, command="tersor advise", **changes)

    def make(folder: Path) -> Made:
        kind = "-mixed" if how.max_drop is not None else "-weights" if how.activations == "float" else ""
        path = folder / f"{task.source.name}-{name}{kind}.onnx"
        made = quantize_network(task.net, name, how)
        if how.activations == "float" and made.quantized.net.weight_bytes > LITTLE * task.source.weight_bytes:
            kept = 1 - made.quantized.net.weight_bytes / task.source.weight_bytes
            raise UnsupportedError(f"only {kept:.0%} of its bytes are in operators that can be stored so")
        made.save(path)
        return task.measured(made.quantized.net, path.name, made.card)

    return make


def _trained(task: NetTask, name: str) -> Callable[[Path], Made]:
    training: Training | None = task.how.training

    def make(folder: Path) -> Made:
        if training is None:
            raise MissingError("no data to train on: give --train with labelled images")
        path = folder / f"{task.source.name}-{name}-qat.onnx"
        own = replace(training, folder=None if training.folder is None else training.folder / name)
        made = quantize_network(task.net, name, replace(task.how, training=own, bench=False, command="tersor advise"))
        made.save(path)
        return task.measured(made.quantized.net, path.name, made.card)

    return make


def _points(drop: Metric | None) -> Metric | None:
    """A share of accuracy that was lost, in percentage points."""
    if drop is None:
        return None
    low, high = (None if end is None else PERCENT * end for end in (drop.low, drop.high))
    return replace(drop, value=PERCENT * drop.value, low=low, high=high, unit="points")


def _lost(agreement: Metric | None) -> Metric | None:
    """Answers that are another class now, in percentage points."""
    if agreement is None:
        return None
    ends = [None if end is None else PERCENT * (1 - end) for end in (agreement.high, agreement.low)]
    value = PERCENT * (1 - agreement.value)
    return Metric("disagreement", value, "points", ends[0], ends[1], agreement.units)


def _speed(net: Net, full: Net, feeds: Feeds, threads: int) -> Metric:
    ratio = race_nets(net, full, feeds, threads=threads).ratios[0]
    low, high = (
        None if end is None or not np.isfinite(end) or end <= 0 else 1 / end for end in (ratio.high, ratio.low)
    )
    return Metric("speed", 1 / ratio.value, "", low, high, ratio.units)
