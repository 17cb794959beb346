"""From a net and a budget to the file that keeps to it: the most precise format that does, and why others do not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.card import Artefact, Card
from tersor.core.errors import MissingError, QualityError, SchemeError, TersorError
from tersor.core.evaluation import Limit, Metric
from tersor.files.atomic import atomic_writer
from tersor.files.hashing import sha256
from tersor.graph.net import Net
from tersor.graph.observe import batches_of
from tersor.graph.placement.engines import engine
from tersor.graph.placement.sites import Placement
from tersor.graph.ptq import QuantizedNet
from tersor.graph.scheme import Precision
from tersor.graph.sessions import Feeds, items_of
from tersor.graph.simplify import simplified
from tersor.pipeline.nets.cards import card_of, relative_error
from tersor.pipeline.nets.data import calibration_batches
from tersor.pipeline.nets.mobile.budget import ESTIMATED, Budget
from tersor.pipeline.nets.mobile.programs import Made, engine_for, make_program
from tersor.pipeline.nets.quantizing import NetHow, open_source, quantize_network, with_data
from tersor.pipeline.steps.cards import save_card
from tersor.targets.estimating.estimate import Unknown
from tersor.targets.estimating.latency import estimate_energy, estimate_latency, estimate_sustained
from tersor.targets.estimating.machine import of_profile
from tersor.targets.estimating.measured import rates_of
from tersor.targets.profiles.table import profile

__all__ = ["FLOATS", "LADDERS", "PhoneResult", "Trial", "quantize_for_phone"]

FLOATS = {"fp32": False, "fp16": True}
"""Formats without integers, and whether they are half as wide."""
ENGINES = {".pte": "executorch", ".ort": "onnxruntime"}
"""As the table of rates names them."""
LADDERS = {".pte": ("fp32", "fp16", "int8", "int4-g32"), ".ort": ("fp32", "int8")}
"""From the most precise to the smallest."""
ITEMS = 16
"""Of the calibration data, that a program has to run."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A format that was tried: what it made and how that was judged, or why it made nothing."""

    format: str
    quantized: QuantizedNet | None = None
    made: Made | None = None
    card: Card | None = None
    limits: tuple[Limit, ...] = ()
    error: str = ""

    @property
    def fits(self) -> bool:
        """Whether it was made and keeps to every demand, as surely as was measured."""
        return self.made is not None and all(limit.outcome == "pass" for limit in self.limits)

    @property
    def reason(self) -> str:
        """What is against it, in words; nothing where it fits."""
        return self.error or "; ".join(limit.reason for limit in self.limits if limit.outcome != "pass")


@dataclass(frozen=True, eq=False)
class PhoneResult:
    """A net as a phone runs it, with what it cost and what else was tried."""

    made: Made
    quantized: QuantizedNet
    card: Card
    trials: tuple[Trial, ...]
    suffix: str

    def save(self, path: str | Path) -> Card:
        """Write the file and its Card beside it; both appear whole. Returns the Card with the hash of the file."""
        target = Path(path)
        if target.suffix != self.suffix:
            raise SchemeError(f"this was made as {self.suffix}, not for {target.name}")
        with atomic_writer(target) as file:
            file.write(self.made.data)
        card = replace(self.card, artefacts=(Artefact(target.name, len(self.made.data), sha256(target)),))
        save_card(card, target)
        return card


def quantize_for_phone(net: Any, name: str | None, how: NetHow, *, suffix: str = ".pte") -> PhoneResult:
    """Return `net` as the program that keeps to `how.budget`.

    name    a format: fp32, fp16 or what `quantize_network` takes; None: the first of LADDERS that fits
    suffix  ".pte" (ExecuTorch) or ".ort" (ONNX Runtime)
    Raises QualityError where nothing fits, with the reason of each format (unless `how.force`: then the last that was
    made is taken), and the errors of `quantize_network`.
    """
    began, target = time.perf_counter(), engine_for(suffix)
    how = with_data(replace(how, target=target, bench=False))  # refused at once, not by every format in turn
    source, files = open_source(net, how)
    data = calibration_batches(how.calibration, source, how.preparation, images=how.images)
    batches = batches_of(source, data, how.limit)
    how, sample = replace(how, calibration=batches), _few(batches)
    trials: list[Trial] = []
    for wanted in [name] if name is not None else LADDERS[suffix]:
        trials.append(_tried(source, wanted, how, sample, suffix))
        if trials[-1].fits:
            break
    made = [trial for trial in trials if trial.made is not None]
    chosen = trials[-1] if trials[-1].fits else made[-1] if made and how.force else None
    if chosen is None or chosen.card is None or chosen.made is None or chosen.quantized is None:
        told = "\n".join(f"  {trial.format}: {trial.reason}" for trial in trials)
        raise QualityError(
            f"{source.name}: no format fits the phone:\n{told}\nAllow more, or make the net smaller"
            + ("; --force writes the last all the same" if made else "")
        )
    notes = [*chosen.card.notes, *chosen.made.notes, *(_told(trial) for trial in trials)]
    about = f"{sum(map(items_of, batches))} items in {len(batches)} batches"
    plan = replace(chosen.card.plan, recipe=replace(chosen.card.plan.recipe, calibration=about))
    seconds = replace(chosen.card.seconds, total=time.perf_counter() - began)
    card = replace(chosen.card, plan=plan, sources=files, notes=tuple(notes), seconds=seconds, command=how.command)
    return PhoneResult(chosen.made, chosen.quantized, card, tuple(trials), suffix)


def _tried(source: Net, name: str, how: NetHow, sample: Feeds, suffix: str) -> Trial:
    try:
        quantized, card = _floated(source, name, how) if name in FLOATS else _rounded(source, name, how)
        half = FLOATS.get(name, False)
        made = make_program(quantized, sample, suffix, half=half, threads=how.threads, name=name)
    except TersorError as error:
        if how.budget is None or not how.budget.demands or isinstance(error, MissingError):
            raise  # what is not installed, no other format brings
        return Trial(name, error=str(error))
    if how.budget is not None:
        made, unknown = _estimated(made, how.budget, ENGINES[suffix])
        made = replace(made, benchmark=replace(made.benchmark, limits=how.budget.limits(made.benchmark, unknown)))
    benchmark = replace(made.benchmark, command=how.command)
    return Trial(name, quantized, made, replace(card, benchmarks=(benchmark,)), benchmark.limits)


def _estimated(made: Made, budget: Budget, engine: str) -> tuple[Made, str]:
    """Return what was made with an estimate for the phone of the budget, and why there is none, where there is none."""
    if budget.phone is None:
        return made, ""
    machine = of_profile(profile(budget.phone))
    latency = estimate_latency(made.work, machine, rates_of(engine))
    found = (latency, estimate_sustained(latency, machine), estimate_energy(latency, machine))
    notes = [*made.notes, *map(str, found)]
    if isinstance(latency, Unknown):
        return replace(made, notes=tuple(notes)), str(latency)
    notes += [f"the estimate rests on this: {line}" for line in latency.assumptions]
    metric = Metric(ESTIMATED, latency.value, "ms", latency.low, latency.high)
    benchmark = replace(made.benchmark, metrics=(*made.benchmark.metrics, metric))
    return replace(made, notes=tuple(notes), benchmark=benchmark), ""


def _rounded(source: Net, name: str, how: NetHow) -> tuple[QuantizedNet, Card]:
    # groups run only on activations that are rounded at run time, which is what phones have kernels for
    wants_rows = "-g" in name and how.activations is None and how.target == "xnnpack"
    result = quantize_network(source, name, replace(how, activations="dynamic") if wants_rows else how)
    return result.quantized, result.card


def _floated(source: Net, name: str, how: NetHow) -> tuple[QuantizedNet, Card]:
    """Return the net as it is, with a Card that says so."""
    began, recipe = time.perf_counter(), replace(how.recipe, engine=str(how.target))
    plain, placement = simplified(source), Placement(engine(recipe.engine), (), (), (), Precision())
    quantized = QuantizedNet(plain, plain, recipe, placement, {}, {}, {})
    card = card_of(quantized, {}, name, "", began=began, source_bytes=source.weight_bytes)
    if FLOATS[name]:
        rows = tuple(replace(row, format="f16", nbytes=row.nbytes // 2) for row in card.plan.tensors)
        card = replace(card, plan=replace(card.plan, tensors=rows), errors=tuple(_halved(plain, card)))
    return quantized, card


def _halved(plain: Net, card: Card) -> Iterator[Any]:
    for error in card.errors:
        numbers = plain.graph.initializers[error.name].const_value.numpy()  # type: ignore[union-attr]
        yield replace(error, relative=relative_error(numbers, numbers.astype(np.float16)) or 0.0)


def _few(batches: Sequence[Feeds]) -> Feeds:
    """Return the first items of all batches together, ITEMS at most."""
    names = list(batches[0])
    shape = {name: batches[0][name].shape[1:] for name in names}
    alike = [feeds for feeds in batches if all(feeds[name].shape[1:] == shape[name] for name in names)]
    return {name: np.concatenate([feeds[name] for feeds in alike])[:ITEMS] for name in names}


def _told(trial: Trial) -> str:
    if trial.error or trial.made is None:
        return f"{trial.format} was tried, and makes nothing: {trial.error}"
    if not trial.limits:
        return f"{trial.format}: no limit was asked for"
    verdict = "fits" if trial.fits else "does not fit"
    return f"{trial.format} {verdict}: {'; '.join(limit.reason for limit in trial.limits)}"
