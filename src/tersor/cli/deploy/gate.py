"""`tersor gate`: may this artefact serve?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.options.registries import WhoOption, who_or_user
from tersor.cli.quantize import parse_size
from tersor.cli.screen.output import JsonOption, console, print_json
from tersor.cli.screen.published import published_command
from tersor.deploy.gating.record import GateRecord
from tersor.deploy.gating.serving import Bounds
from tersor.pipeline.deploy.gate import MARGIN, gate_registered
from tersor.pipeline.deploy.gate import gate as judged

__all__ = ["gate"]

_STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def gate(
    context: typer.Context,
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A GGUF.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The full-precision model: folder, file or id; of --registry its baseline."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="TEXT", help="A UTF-8 text like that of your use.")] = None,
    max_kl: Annotated[
        float, typer.Option(min=0, metavar="NATS", help="The margin: a divergence below it is taken for no worse.")
    ] = MARGIN,
    windows: Annotated[int, typer.Option(min=2, metavar="N", help="Windows of text at most.")] = 40,
    max_first_ms: Annotated[
        float | None, typer.Option(min=0, metavar="MS", help="Longest median time until the first token.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(min=0, metavar="MS", help="Longest median time until an answer of 32 tokens.")
    ] = None,
    max_slowdown: Annotated[
        float | None,
        typer.Option(min=0, metavar="RATIO", help="Most time a token, times that of full precision, asked in turn."),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory of the engine, such as 2GiB.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the engine.")] = 1,
    registry: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the verdict in this registry, which knows the artefact."),
    ] = None,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge an artefact before it serves: PASS, FAIL or INCONCLUSIVE, each check with its numbers.

    Hashes of its Card, structure, tokens, tensors and logits against the model it came from, golden prompts through the
    code that serves, time and memory, and quality: the 95 % interval of its divergence has to lie below the margin, as
    those of times have to lie below theirs; one that holds its limit settles nothing. Exit code 0, 1, or 3 where
    something could not be settled. With --registry the verdict is kept, and decides whether `tersor serve` takes the
    artefact.

    \b
    Example:
      tersor gate model-q4.gguf --against org/name --data my-text.txt --max-kl 0.03 --max-memory 6GiB
      tersor gate registry/model-q4.gguf --registry registry
    """
    memory = None if max_memory is None else parse_size(max_memory)
    bounds = Bounds(max_first_ms, max_latency_ms, max_slowdown, memory)
    if against is None and registry is None:
        raise typer.BadParameter("a model is wanted, or --registry", param_hint="--against")
    command = published_command(context)

    def judge(path: Path, baseline: str | Path) -> GateRecord:
        return judged(
            path,
            against=baseline,
            data=data,
            max_kl=max_kl,
            windows=windows,
            bounds=bounds,
            threads=threads,
            command=command,
        )

    if registry is None:
        record, label = judge(artefact, against or ""), ""
    else:
        filed = gate_registered(artefact, registry=registry, who=who_or_user(who), judge=judge, against=against)
        record, label = filed.record, filed.label
    if as_json:
        print_json(record.to_object())
    else:
        _print(console(), record)
        if label:
            console().print(f"kept in {registry} as the verdict on {label}")
    raise typer.Exit(CODES[record.outcome])


def _print(screen: Console, record: GateRecord) -> None:
    for check in record.checks:
        screen.print(f"{check.outcome:13}", style=_STYLES[check.outcome], end="")
        screen.print(f"{check.name:10} {check.detail}")
        for problem in check.problems[:4]:
            screen.print(f"{'':24}- {problem}")
    screen.print()
    screen.print(f"{record.outcome}", style=_STYLES[record.outcome], end="")
    screen.print(f"  {record.artefact} against {record.baseline}")
