"""The half of `tersor quantize` that is for nets with activations: its call, and what it prints."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from tersor.calibrate.workspace import workspace_path
from tersor.cli.screen.output import console, print_json, significant, table
from tersor.cli.screen.progress import progress_bar
from tersor.core.card import Card, card_path
from tersor.core.errors import SchemeError
from tersor.core.quantities import size
from tersor.evaluation.nets.images import Preparation
from tersor.graph.ptq import Recipe
from tersor.pipeline.nets.mobile.budget import MEGA, Budget
from tersor.pipeline.nets.mobile.fitting import PhoneResult, quantize_for_phone
from tersor.pipeline.nets.mobile.programs import SUFFIXES, engine_for
from tersor.pipeline.nets.quantizing import NetHow, QuantizedResult, check_output, quantize_network
from tersor.pipeline.nets.training import Training

__all__ = ["NetArguments", "quantize_net_command"]

METHODS = ("ptq", "qat")


@dataclass(frozen=True, slots=True)
class NetArguments:
    """What was typed, as `NetHow` wants it."""

    calibration: str | None
    weights: Path | None
    data: Path | None
    max_drop: float | None
    engine: str | None
    leave: tuple[str, ...]
    preparation: Preparation = field(default_factory=Preparation)
    activations: str | None = None
    threads: int = 0
    force: bool = False
    method: str | None = None
    train: Path | None = None
    epochs: int = 10
    resume: bool = False
    target: str | None = None
    budget: Budget | None = None
    plan: Path | None = None
    command: str = ""


def quantize_net_command(
    model: str, output: Path, file_type: str | None, given: NetArguments, *, as_json: bool
) -> None:
    """Quantize a net, write it and its Card, and tell what became of it.

    file_type  a format, None where none was typed: int8, or for phones with a budget the first that fits
    """
    if given.calibration is None:
        raise SchemeError(
            "a net needs data to know the ranges of its activations by: --calibration with a folder of images, an "
            ".npz, or package.module:function that returns batches"
        )
    if given.method not in (None, *METHODS):
        raise SchemeError(f"nets are quantized by {', '.join(METHODS)}, not {given.method!r}")
    is_mobile = given.target is not None or output.suffix in SUFFIXES
    _check_target(given, output, is_mobile=is_mobile)
    check_output(output, model, given.weights)
    if given.plan is not None and (file_type is not None or is_mobile):
        raise SchemeError(
            "--plan says what operators of an ONNX file become: --format and files for phones mean nothing"
        )
    with progress_bar(unit="items") as progress:
        how = NetHow(
            calibration=given.calibration,
            weights=given.weights,
            recipe=Recipe(left=given.leave),
            target=given.engine,
            activations=given.activations,
            training=_training(given, output),
            data=given.data,
            max_drop=given.max_drop,
            force=given.force,
            preparation=given.preparation,
            threads=given.threads,
            command=given.command,
            progress=progress,
            budget=given.budget,
            plan=given.plan,
        )
        result: QuantizedResult | PhoneResult
        if is_mobile:
            named = file_type if file_type is not None or (given.budget and given.budget.demands) else "int8"
            result = quantize_for_phone(model, named, how, suffix=output.suffix)
        else:
            result = quantize_network(model, file_type or "int8", how)
        card = result.save(output)
        if how.training is not None and how.training.folder is not None:
            shutil.rmtree(how.training.folder, ignore_errors=True)
    if as_json:
        print_json(card.to_object())
    else:
        _show(result, card, output)


def _check_target(given: NetArguments, output: Path, *, is_mobile: bool) -> None:
    """Refuse files that the target does not run, and limits that nobody judges."""
    if given.target not in (None, "mobile"):
        raise SchemeError(f"nets have the target mobile, not {given.target!r}")
    if is_mobile:
        engine_for(output.suffix)
        return
    if given.budget is not None and (given.budget.demands or given.budget.phone):
        demands = [*given.budget.demands, *["phone"] * (given.budget.phone is not None)]
        names = ", ".join(f"--{name.replace('_', '-')}" for name in demands)
        raise SchemeError(f"{names}: limits of a phone need --target mobile, and a name like {output.stem}.pte")
    if output.suffix != ".onnx":
        raise SchemeError(
            f"nets are written as ONNX: give a name like {output.stem}.onnx, or .pte or .ort for phones, not "
            f"{output.name}"
        )


def _training(given: NetArguments, output: Path) -> Training | None:
    """Return how to train, None for PTQ."""
    if given.method != "qat":
        if given.train is not None or given.resume:
            raise SchemeError(f"{'--resume' if given.train is None else '--train'} is for --method qat")
        return None
    if given.train is None:
        raise SchemeError("--method qat needs --train: labelled images to train on, as --data takes them")
    return Training(given.train, epochs=given.epochs, folder=workspace_path(output), resume=given.resume)


def _show(result: QuantizedResult | PhoneResult, card: Card, output: Path) -> None:
    screen = console()
    screen.print(
        f"{card.name} → {card.plan.recipe.format}: {size(card.source_bytes)} → {size(card.nbytes)} "
        f"({card.ratio:.2f}× smaller)"
    )
    made = table("", ">float", ">integers", ">95 % interval")
    for evaluation in card.evaluations:
        for name in ("top1_accuracy", "top5_accuracy"):
            ours, theirs = evaluation.metric(name), evaluation.metric(f"reference_{name}")
            if ours is not None and theirs is not None:
                interval = f"{ours.low:.2%} … {ours.high:.2%}" if ours.low is not None and ours.high is not None else ""
                made.add_row(name.replace("_", " "), f"{theirs.value:.2%}", f"{ours.value:.2%}", interval)
        drop, noise = evaluation.metric("accuracy_drop"), evaluation.metric("output_sqnr")
        if drop is not None and drop.low is not None and drop.high is not None:
            made.add_row("lost, points", "", f"{100 * drop.value:.2f}", f"{100 * drop.low:.2f} … {100 * drop.high:.2f}")
        if noise is not None:
            made.add_row("output SQNR, dB", "", f"{noise.value:.1f}", "")
    for race in card.benchmarks:
        ours, ratio = race.metric("latency_p50_ms"), race.ratios[0] if race.ratios else None
        if ours is not None and ratio is not None and ratio.value > 0:
            times = f"{significant(ours.value / ratio.value)}", f"{significant(ours.value)}"
            made.add_row(f"ms, batch {race.settings['batch']}", *times, f"{1 / ratio.value:.2f}× faster")
    if made.row_count:
        screen.print(made)
    for note in card.notes:
        screen.print(f"note: {note}")
    if isinstance(result, QuantizedResult) and result.ranking:
        screen.print(_ranking(result))
    if isinstance(result, PhoneResult):
        screen.print(_trials(result))
    sys.stdout.write(f"wrote {output} in {card.seconds.total:.1f} s\n")
    sys.stdout.write(f"Card  {card_path(output, 'html')} (and .md, .json)\n")


def _trials(result: PhoneResult) -> Table:
    made = table("format", ">file, MB", ">planned, MB", ">memory, MB", ">ms", ">SQNR, dB", "verdict")
    columns = (("file_bytes", MEGA), ("planned_bytes", MEGA), ("resident_bytes", MEGA), ("latency_p50_ms", 1.0))
    for trial in result.trials:
        cells = []
        for name, unit in (*columns, ("output_sqnr", 1.0)):
            found = None if trial.made is None else trial.made.benchmark.metric(name)
            cells.append("–" if found is None else significant(found.value / unit))
        verdict = "fits" if trial.limits and trial.fits else "made" if trial.fits else "does not fit"
        made.add_row(trial.format, *cells, verdict)
    return made


def _ranking(result: QuantizedResult) -> Table:
    made = table("operator", "kind", ">weights", ">alone, dB", ">share of noise", "now")
    left, wide = (set(result.returned.left), set(result.returned.wide)) if result.returned else (set(), set())
    for row in result.ranking:
        where = "float" if row.node in left else "8 bits" if row.node in wide else "integers"
        made.add_row(row.node, row.operator, f"{row.weights:,}", f"{row.alone_db:.1f}", f"{row.gain:.1%}", where)
    return made
