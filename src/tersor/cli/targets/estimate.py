"""`tersor estimate`: does it fit, and how fast can it be at most?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.screen.output import JsonOption, console, is_given, print_json, table
from tersor.core.errors import SchemeError
from tersor.core.quantities import number, size
from tersor.core.records import plain
from tersor.evaluation.estimates.estimate import Amount, Estimate
from tersor.pipeline.targets import estimate as pipeline
from tersor.targets.profiles.profile import Figure, Profile
from tersor.targets.profiles.table import PROFILES

__all__ = ["estimate"]


def estimate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF, a model folder (its config.json is enough), or a hub id."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="The machine; without it this one, whose roofs are measured.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="PROFILE", help="The same, for GPUs: h100, l4, …")] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Machines that share the model.")] = 1,
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="File type or number format; without it as it is stored."),
    ] = None,
    context_tokens: Annotated[
        int, typer.Option("--context", min=1, metavar="N", help="Tokens that each sequence grows to.")
    ] = 4096,
    prompt: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of the prompt.")] = 512,
    chunk: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of it evaluated together.")] = 512,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences side by side.")] = 1,
    cache: Annotated[str, typer.Option(metavar="NAME", help="Number format of keys and values.")] = "f16",
    compute: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="What matrices are multiplied in: float16, int8, …; default: as engines do."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="Of the measurement; 0: all physical cores.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="List the profiles and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what a language model takes on a machine and how fast it can be at most; no weight is read.

    Weights, the cache of keys and values, and what lives while it computes; whether that fits, the longest context and
    the largest batch; generation as the bandwidth bounds it, prompts as the arithmetic does. Each figure says whether
    it is exact or a bound, and what it rests on; what nobody documents is unknown. Exit code 1 if it does not fit.
    """
    if show:
        _list(as_json)
        return
    if model is None:
        raise SchemeError("name a MODEL, or --list for the profiles")
    if target is not None and gpu is not None:
        raise SchemeError("--target and --gpu name the same thing: give one of them")
    found = pipeline.estimate(
        model,
        target=target or gpu or pipeline.HERE,
        format=format_,
        context=context_tokens,
        prompt=prompt if is_given(context, "prompt") else min(prompt, context_tokens),
        batch=batch,
        chunk=chunk,
        cache_format=cache,
        compute=compute,
        machines=count,
        threads=threads,
    )
    if as_json:
        print_json(plain(found))
    else:
        _print(console(), found)
    if found.fits is False:
        raise typer.Exit(1)


def _print(screen: Console, found: Estimate) -> None:
    verdict = {True: "fits", False: "does not fit", None: "whether it fits is unknown"}[found.fits]
    screen.print(f"{found.model} in {found.format} on {found.machine}: {verdict}\n")
    rows = table("what", ">", "", "rests on")
    for amount in found.amounts:
        rows.add_row(_label(amount), _value(amount), amount.sense, amount.basis)
    screen.print(rows)
    screen.print()
    for text in found.assumptions:
        screen.print(f"note: {text}")


def _label(amount: Amount) -> str:
    return amount.name.replace("_bytes", "").replace("_tokens_per_s", "").removesuffix("_s").replace("_", " ")


def _value(amount: Amount) -> str:
    if amount.value is None:
        return "–"
    if amount.unit == "bytes":
        return size(round(amount.value))
    return f"{number(amount.value, 3)} {amount.unit}"


def _list(as_json: bool) -> None:
    if as_json:
        print_json([plain(row) for row in PROFILES.values()])
        return
    rows = table("profile", "kind", "machine", ">memory GB", ">reads GB/s", "T operations/s")
    for row in PROFILES.values():
        rows.add_row(row.name, row.kind, row.title, _giga(row.memory_bytes), _giga(row.read_bytes_per_s), _peaks(row))
    screen = console()
    screen.print(rows)
    screen.print("\n– is what no document that we read says; `--list --json` shows the source of every figure")


def _giga(figure: Figure | None) -> str:
    return "–" if figure is None else number(figure.value / 1e9, 4)


def _peaks(row: Profile) -> str:
    names = ("float16", "float8", "int8", "float32")
    found = [(name, row.peak(name)) for name in names]
    return ", ".join(f"{name} {number(rate.value / 1e12, 3)}" for name, rate in found if rate is not None) or "–"
