"""`tersor report`: one page on one artefact, or on several beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.screen.output import JsonOption, console, print_json, table
from tersor.cli.screen.progress import progress_bar
from tersor.core.quantities import amount, size
from tersor.pages import AXES, limits_of, measured, outcome_of
from tersor.pipeline import report as pipeline

__all__ = ["report"]


def report(
    artefacts: Annotated[
        list[Path], typer.Argument(metavar="ARTEFACT...", help="GGUF files, or their Cards (NAME.card.json).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page; an older one is replaced.")
    ] = Path("report.html"),
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The original. Artefacts whose Card holds no evaluation (on --data) are evaluated first.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="A UTF-8 text to evaluate on; without, tersor's own.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, metavar="N", help="Threads of each of the two engines; 0: half of the cores.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page on an artefact, or on several beside each other.

    The page is complete in itself: it loads nothing, works without JavaScript, in light and dark, and prints. It shows
    sizes, error by layer, divergence with intervals, the tokens that suffered most, speed, formats and hashes; of
    several artefacts the trade-off of size against quality and speed, and which of them no other beats.

    \b
    Example:
      tersor report a.gguf b.gguf c.gguf --against org/name --data text.txt -o report.html
    """
    with progress_bar(unit="weights") as progress:
        made = pipeline.report(artefacts, output, against=against, data=data, threads=threads, progress=progress)
    if as_json:
        print_json(made.to_object())
    else:
        _print(console(), made)


def _print(screen: Console, made: pipeline.Report) -> None:
    axes = [axis for axis in AXES if any(measured(card, axis.metric) for card in made.cards)]
    has_limits = any(limits_of(card) for card in made.cards)
    rows = table("artefact", ">size", ">bits", *(f">{axis.short}" for axis in axes), *["limits"] * has_limits)
    for card, label in zip(made.cards, made.labels, strict=True):
        found = [measured(card, axis.metric) for axis in axes]
        cells = ["–" if metric is None else amount(metric, metric.value) for metric in found]
        cells += [outcome_of(limits_of(card)) or "–"] * has_limits
        rows.add_row(label, size(card.nbytes), f"{card.plan.bits_per_weight:.2f}", *cells)
    screen.print(rows)
    screen.print()
    if not axes:
        screen.print("quality has not been measured yet; --against MODEL does it first")
    screen.print(f"wrote {made.path}", soft_wrap=True)
