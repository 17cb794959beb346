"""`tersor verify`: proof that an artefact is what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.screen.output import JsonOption, console, print_json
from tersor.cli.screen.progress import progress_bar
from tersor.evaluation.checks.verdict import Check, Verdict
from tersor.pipeline import verify as pipeline

__all__ = ["verify"]

SHOWN_PROBLEMS = 8
MAX_TOKENS = 4096
"""Enough to judge a model by; llama.cpp takes memory for every token it may be asked for."""
_MARKS = {"passed": ("ok", "green"), "failed": ("FAILED", "bold red"), "skipped": ("skipped", "yellow")}


def verify(
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A GGUF; any part of a split one.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The model it was made from: folder, file, GGUF or Hugging Face id. Adds tokens, tensors and logits.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="A UTF-8 text to compare tokens and logits on as well.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=MAX_TOKENS, metavar="N", help="How many tokens llama.cpp must generate.")
    ] = 24,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of llama.cpp.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Check that a GGUF is sound, that llama.cpp runs it, and that it is the model that it came from.

    Always: structure (every rule of llama.cpp's loader), the Card beside it, loading and greedy generation.
    With --against: tokens equal the source tokenizer's on mixed text; every tensor equals the source's up to the
    rounding of its format, the usual conversion mistakes being named; logits agree with the source model's.
    Exit code 1 if any check fails; skipped checks say what to install.
    """
    with progress_bar(unit="weights") as progress:
        verdict = pipeline.verify(
            artefact, against=against, data=data, tokens=tokens, threads=threads, progress=progress
        )
    if as_json:
        print_json(verdict.to_object())
    else:
        _print(console(), verdict)
    if not verdict.passed:
        raise typer.Exit(1)


def _print(screen: Console, verdict: Verdict) -> None:
    for check in verdict.checks:
        word, style = _MARKS[check.status]
        screen.print(f"{word:8}", style=style, end="")
        screen.print(f"{check.name:10} {check.detail}")
        for problem in check.problems[:SHOWN_PROBLEMS]:
            screen.print(f"{'':19}- " + problem.replace("\n", f"\n{'':19}"))
        if len(check.problems) > SHOWN_PROBLEMS:
            screen.print(f"{'':19}- and {len(check.problems) - SHOWN_PROBLEMS} more (--json shows all)")
    screen.print()
    screen.print(_summary(verdict.checks, verdict))


def _summary(checks: tuple[Check, ...], verdict: Verdict) -> str:
    counts = {status: sum(check.status == status for check in checks) for status in _MARKS}
    against = f" against {verdict.against}" if verdict.against else ""
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    if verdict.passed:
        advice = "" if verdict.against else "; --against MODEL proves that it is the model it came from"
        return f"{verdict.artefact}{against}: {counts['passed']} checks passed{skipped}{advice}"
    return f"{verdict.artefact}{against}: {counts['failed']} of {len(checks)} checks failed{skipped}"
