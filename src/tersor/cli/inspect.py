"""`tersor inspect`: what is inside a model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.screen.output import JsonOption, console, print_json, table
from tersor.core.quantities import size
from tersor.pipeline import inspect as pipeline

__all__ = ["inspect"]

SHOWN_VALUE = 64


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A GGUF, a checkpoint folder or file, or a Hugging Face id.")
    ],
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="List every tensor.")] = True,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="List every metadata key.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Show metadata, tokenizer, tensors and formats of a model; no weight is read.

    The tensors of a checkpoint are shown as they would stand in a GGUF.
    """
    found = pipeline.inspect(source)
    if as_json:
        print_json(found.to_object())
        return
    screen = console()
    bits = found.nbytes * 8 / max(found.weights, 1)
    screen.print(f"{found.name}: {found.container}, architecture {found.architecture}")
    screen.print(f"{found.weights:,} weights, {size(found.nbytes)}, {bits:.2f} bits per weight")
    screen.print(f"files: {', '.join(f'{name} ({size(count)})' for name, count in found.files.items())}")
    _print_tokenizer(screen, found.tokenizer)
    for note in found.notes:
        screen.print(f"note: {note}")
    _print_totals(screen, found)
    if metadata:
        rows = table("key", "value")
        for key, value in found.metadata.items():
            text = str(value).replace("\n", "⏎")
            rows.add_row(key, text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…")
        screen.print()
        screen.print(rows)
    if tensors:
        _print_tensors(screen, found)


def _print_tokenizer(screen: Console, tokenizer: pipeline.TokenizerSummary | None) -> None:
    if tokenizer is None:
        screen.print("tokenizer: none")
    elif tokenizer.problem:
        screen.print(f"tokenizer: {tokenizer.problem}")
    else:
        kind = " ".join(part for part in (tokenizer.model, tokenizer.pre) if part)
        special = ", ".join(f"{name} {text}" for name, text in tokenizer.special.items())
        chat = "with chat template" if tokenizer.has_chat_template else "no chat template"
        screen.print(f"tokenizer: {kind}, {tokenizer.size:,} tokens, {special or 'no special tokens'}, {chat}")


def _print_totals(screen: Console, found: pipeline.Inspection) -> None:
    rows = table("format", ">tensors", ">weights", ">bits each", ">size", ">share")
    for row in found.totals:
        share = row.nbytes / max(found.nbytes, 1)
        bits = f"{row.bits_per_weight:.4g}"
        rows.add_row(row.format.lower(), str(row.tensors), f"{row.weights:,}", bits, size(row.nbytes), f"{share:.1%}")
    screen.print()
    screen.print(rows)


def _print_tensors(screen: Console, found: pipeline.Inspection) -> None:
    rows = table("tensor", ">shape", "format", ">bits each", ">size")
    for tensor in found.tensors:
        shape = " × ".join(map(str, tensor.shape))
        bits = f"{tensor.bits_per_weight:.4g}"
        rows.add_row(tensor.name, shape, tensor.format.lower(), bits, size(tensor.nbytes))
    screen.print()
    screen.print(rows)
