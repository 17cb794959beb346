"""`tersor optimize`: which engine, threads and settings run it fastest here?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.options.numbers import whole_numbers
from tersor.cli.screen.benchmarks import shown_number
from tersor.cli.screen.output import JsonOption, console, print_json, refuse_given, table
from tersor.cli.screen.progress import progress_bar
from tersor.core.errors import SchemeError
from tersor.core.records import plain
from tersor.evaluation.nets.running.choices import Tried
from tersor.evaluation.nets.running.engines import Clock
from tersor.pipeline.targets import optimize as pipeline
from tersor.pipeline.targets.optimize import Optimized
from tersor.targets.processor import is_busy

__all__ = ["optimize"]


def optimize(
    context: typer.Context,
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="An ONNX net or a GGUF.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="What remembers the choice; default: beside the artefact."),
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME", help="What to be fast on: cpu.")] = "cpu",
    engines: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Engines to try: onnxruntime, openvino, torch; default: all.")
    ] = None,
    threads: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of threads to try; default: one, and all cores.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Nets: size of a free first axis of inputs.")] = 1,
    length: Annotated[int, typer.Option(min=1, metavar="N", help="Nets: size of other free axes of inputs.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds of the race among the best.")] = 15,
    clock: Annotated[
        str, typer.Option(metavar="NAME", help="wall, or processor: with --threads 1, on a machine that is busy.")
    ] = "wall",
    again: Annotated[bool, typer.Option("--again", help="Measure, although a choice is remembered.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the engine, threads and settings that run an artefact fastest on this machine, and remember the choice.

    A net is tried in every engine that is installed, in all its ways: first each for a moment, then the best of them
    side by side. An engine whose results are not those of the first is not taken. The choice lies beside the artefact
    and holds for its bytes, this processor, these shapes and these releases of the engines.
    """
    if artefact.suffix == ".gguf":
        refuse_given(context, ("batch", "length"), "a GGUF")
    with progress_bar(unit="items") as progress:
        found = pipeline.optimize(
            artefact,
            target=target,
            output=output,
            engines=None if engines is None else [word.strip() for word in engines.split(",")],
            threads=whole_numbers(threads, "--threads"),
            batch=batch,
            length=length,
            rounds=rounds,
            again=again,
            clock=_clock(clock),
            progress=progress,
        )
    if as_json:
        print_json({"fresh": found.fresh, "seconds": found.seconds, "choice": plain(found.choice)})
    else:
        _print(console(), found)


def _clock(name: str) -> Clock:
    if name not in ("wall", "processor"):
        raise SchemeError(f"--clock is wall or processor, got {name!r}")
    return "wall" if name == "wall" else "processor"


def _print(screen: Console, found: Optimized) -> None:
    choice = found.choice
    how = f"measured in {found.seconds:.0f} s" if found.fresh else f"remembered since {choice.date}"
    screen.print(f"{found.artefact.name}: {found.way()} ({choice.best_ms:.3g} ms, {how})\n")
    rows = table("engine", ">threads", "settings", ">ms", ">slower", "why not")
    for row in choice.tried:
        slower = "–" if row.best_ms is None else f"{row.best_ms / choice.best_ms:.2f}×"
        value = "–" if row.best_ms is None else shown_number(row.best_ms)
        rows.add_row(row.engine, str(row.threads), _settings(row), value, slower, row.note)
    screen.print(rows)
    screen.print(f"\nkept in {found.path.name}")
    if is_busy(found.load):
        screen.print(f"note: the load average was {found.load:.1f}: other work ran beside; --again when it is quiet")


def _settings(row: Tried) -> str:
    return ", ".join(name if value else f"no {name}" for name, value in row.settings.items())
