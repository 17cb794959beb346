"""`tersor report`: one page on one artefact, on several beside each other, or on what a deployment did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.options.registries import OptionalFolderOption
from tersor.cli.screen.output import JsonOption, console, print_json, refuse_given, table
from tersor.cli.screen.progress import progress_bar
from tersor.core.errors import SchemeError
from tersor.core.quantities import amount, size
from tersor.pages import AXES, limits_of, measured, outcome_of
from tersor.pipeline import report as pipeline
from tersor.pipeline.deploy import report as deployed

__all__ = ["report"]


def report(
    context: typer.Context,
    artefacts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ARTEFACT", help="GGUF files, or their Cards (NAME.card.json)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The page, report.html if not given; of a deployment .html, .md or .json. An older one is replaced.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The original. Artefacts are evaluated first where their Cards hold no evaluation on --data, or on "
            "one text that all share.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="A UTF-8 text to evaluate on; without, tersor's own.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, metavar="N", help="Threads of each of the two engines; 0: half of the cores.")
    ] = 0,
    deployment: Annotated[
        str | None,
        typer.Option(
            "--deployment",
            metavar="NAME",
            help="Report on what serves instead: the file of a deployment, or a name in the --registry.",
        ),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of a deployment: look back so many days; else over the whole record."),
    ] = None,
    folder: OptionalFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page on an artefact, on several beside each other, or on what a deployment did.

    The page is complete in itself: it loads nothing, works without JavaScript, in light and dark, and prints. It shows
    sizes, error by layer, divergence with intervals, the tokens that suffered most, speed, formats and hashes; of
    several artefacts the trade-off of size against quality and speed, and which of them no other beats.

    With --deployment: latency, time to first token, throughput, memory, errors, fallbacks, agreement and accuracy
    beside full precision, with intervals; what served when, decisions with their numbers, incidents and drift. It
    reads what the gateway keeps, which may run meanwhile, and prints Markdown where no --output is given.

    \b
    Example:
      tersor report a.gguf b.gguf c.gguf --against org/name --data text.txt -o report.html
      tersor report --deployment deploy.yaml --days 7 -o report.html
    """
    if deployment is not None:
        refuse_given(context, ("artefacts", "against", "data", "threads"), "a deployment")
        _report_on(deployment, folder, days, output, as_json=as_json)
        return
    refuse_given(context, ("days", "folder"), "artefacts")
    if not artefacts:
        raise typer.BadParameter("artefacts are wanted, or --deployment NAME", param_hint="ARTEFACT")
    page = output or Path("report.html")
    with progress_bar(unit="weights") as progress:
        made = pipeline.report(artefacts, page, against=against, data=data, threads=threads, progress=progress)
    if as_json:
        print_json(made.to_object())
    else:
        _print(console(), made)


def _report_on(name: str, registry: Path | None, days: int | None, output: Path | None, *, as_json: bool) -> None:
    if output is not None and output.suffix.lower() not in deployed.FORMS:
        raise SchemeError(f"{output}: a report ends in {', '.join(deployed.FORMS)}")
    made = deployed.report_on(name, registry=registry, days=days)
    if output is not None:
        deployed.save(made, output)
    if as_json:
        print_json(made.to_object())
    elif output is None:
        sys.stdout.write(deployed.written(made, ".md"))
    else:
        console().print(f"wrote {output}", soft_wrap=True)


def _print(screen: Console, made: pipeline.Report) -> None:
    found = {axis: measured(made.cards, axis.metric) for axis in AXES}
    axes = [axis for axis in AXES if any(found[axis])]
    has_limits = any(limits_of(card) for card in made.cards)
    rows = table("artefact", ">size", ">bits", *(f">{axis.short}" for axis in axes), *["limits"] * has_limits)
    for index, (card, label) in enumerate(zip(made.cards, made.labels, strict=True)):
        metrics = [found[axis][index] for axis in axes]
        cells = ["–" if metric is None else amount(metric, metric.value) for metric in metrics]
        cells += [outcome_of(limits_of(card)) or "–"] * has_limits
        rows.add_row(label, size(card.nbytes), f"{card.plan.bits_per_weight:.2f}", *cells)
    screen.print(rows)
    screen.print()
    for note in made.notes:
        screen.print(f"note: {note}")
    if not axes and not made.notes:
        screen.print("quality has not been measured yet; --against MODEL does it first")
    screen.print(f"wrote {made.path}", soft_wrap=True)
