"""`tersor advise`: the way to make a model small that is enough, found by trying."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.options.images import MeanOption, StdOption, preparation_of
from tersor.cli.options.language import ThreadsOption
from tersor.cli.options.nets import DataOption, EpochsOption, NetSizeOption, TrainOption, WeightsOption
from tersor.cli.quantize import parse_size
from tersor.cli.screen.output import JsonOption, console, is_given, print_json, refuse_given, table
from tersor.core.errors import SchemeError
from tersor.models import Model
from tersor.pipeline.advising.advise import TARGETS, check_report, save_report
from tersor.pipeline.advising.advise import advise as advised
from tersor.pipeline.advising.ladder import Advice, Finding, Goal
from tersor.pipeline.advising.language import WINDOWS, Task
from tersor.pipeline.advising.rendering import COLUMNS, rows_of, verdict_of
from tersor.pipeline.nets.quantizing import NetHow, is_network
from tersor.pipeline.nets.training import Training

__all__ = ["advise"]

MOST_KL, MOST_DROP = 0.05, 1.0


def advise(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A language model as tersor quantize takes it, or a net.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Keep the artefact that is enough here.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="T", help=f"Where it is to run: {' or '.join(TARGETS)}.")] = "cpu",
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest size of the artefact, such as 2GiB.")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help=f"Language models: largest mean divergence; default {MOST_KL:g}."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help=f"Nets: percentage points that may be lost; default {MOST_DROP:g}."),
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Least speed, in multiples of full precision's.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="To calibrate with: text for language models (default: a built-in one), images for nets.",
        ),
    ] = None,
    data: DataOption = None,
    text: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="Language models: held-out text to judge by.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, metavar="N", help="Language models: windows of that text.")] = WINDOWS,
    train: TrainOption = None,
    epochs: EpochsOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = "0,0,0",
    std: StdOption = "1,1,1",
    size_of: NetSizeOption = "",
    threads: ThreadsOption = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rungs that an ended run for the same -o had finished.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was found as .html, .md or .json.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find out which way to make MODEL small is enough: walk the ladder, measure every rung, stop at the first.

    From 16 bits over 8-bit weights and integers to 4 bits and training: each rung is made and compared with full
    precision, and cures (better methods, operators back in float, training) are tried where too much is lost. Without
    a size or a speed the smallest artefact within the loss is taken. Exit code 1 where no rung is enough.
    """
    if report is not None:
        check_report(report)
    is_net = is_network(model)
    _check_given(context, is_net=is_net, is_gpu=target == "gpu")
    most = max_drop if is_net else max_kl
    if (max_kl if is_net else max_drop) is not None:
        raise SchemeError("nets lose accuracy: give --max-drop" if is_net else "language models: give --max-kl")
    goal = Goal(
        (MOST_DROP if is_net else MOST_KL) if most is None else most,
        "points" if is_net else "nats",
        None if max_size is None else parse_size(max_size),
        min_speedup,
    )
    how = None
    if is_net:
        if calibration is None:
            raise SchemeError("a net needs data to calibrate with: --calibration, as tersor quantize takes it")
        training = None if train is None else Training(train) if epochs is None else Training(train, epochs=epochs)
        how = NetHow(
            calibration=calibration,
            weights=weights,
            data=data,
            training=training,
            preparation=preparation_of(mean, std, size_of),
            threads=threads,
        )

    def language(source: Model) -> Task:
        return Task(source, calibration or "builtin", text, windows, threads=threads, train=train, epochs=epochs)

    advice = advised(model, goal, output=output, target=target, how=how, language=language, resume=resume, tell=_tell)
    if report is not None:
        save_report(advice, report)
    if as_json:
        print_json(advice.to_object())
    else:
        _show(advice, output, report)
    if advice.chosen is None:
        raise typer.Exit(1)


def _check_given(context: typer.Context, *, is_net: bool, is_gpu: bool) -> None:
    """Refuse what would be passed over."""
    if is_net:
        refuse_given(context, ("text", "windows"), "a net")
        if is_given(context, "epochs") and not is_given(context, "train"):
            raise SchemeError("--epochs are passes over --train: give both")
        return
    refuse_given(context, ("data", "weights", "mean", "std", "size_of"), "a language model")
    if is_gpu:
        refuse_given(context, ("train", "epochs"), "--target gpu: no rung of its ladder is trained")


def _tell(finding: Finding) -> None:
    """A line for each rung that was tried, as it comes: they take long."""
    if finding.verdict != "passed over":
        sys.stderr.write(f"{finding.rung}: {finding.verdict}: {finding.reason} ({finding.seconds:.1f} s)\n")


def _show(advice: Advice, output: Path | None, report: Path | None) -> None:
    rows: Any = table(*COLUMNS[:-1])
    screen, left = console(), list[str]()
    for *cells, reason in rows_of(advice.findings):
        if cells[1] == "passed over":
            left.append(f"{cells[0]}: {reason}")
        else:
            rows.add_row(*cells)
    screen.print(rows)
    for one in left:
        screen.print(f"passed over  {one}")
    screen.print(f"\n{verdict_of(advice)}")
    for one in advice.next:
        screen.print(f"→ {one}")
    if output is not None and advice.chosen is not None:
        sys.stdout.write(f"wrote {output}\n")
    if report is not None:
        sys.stdout.write(f"report {report}\n")
