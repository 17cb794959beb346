"""`tersor demo`: the whole way in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.deploy.rollout import rollout
from tersor.cli.screen.output import JsonOption, print_json
from tersor.cli.screen.progress import progress_bar
from tersor.core.card import card_path
from tersor.pipeline import demo as pipeline

__all__ = ["demo"]

demo = typer.Typer(name="demo", rich_markup_mode=None)
demo.command(short_help="Roll a good and a bad candidate out, with real traffic.")(rollout)


@demo.callback(invoke_without_command=True)
def demo_group(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")] = Path("out"),
    file_type: Annotated[str, typer.Option("--format", "-f", metavar="F", help="As for quantize.")] = "q4_k_m",
    search: Annotated[str, typer.Option(metavar="best|ggml", help="As for quantize.")] = "best",
    as_json: JsonOption = False,
) -> None:
    """Quantize the embedded model of 4 million weights, let llama.cpp write Python with it, show the Card."""
    if context.invoked_subcommand is not None:
        return
    with progress_bar() as progress:
        made = pipeline.demo(folder, format=file_type, search=search, progress=progress)
    if as_json:
        text = {"path": str(made.path), "prompt": made.prompt, "generated": made.generated, "engine": made.engine}
        speed = {"tokens": made.tokens, "tokens_per_second": made.tokens_per_second}
        print_json({**text, **speed, "card": made.card.to_object()})
        return
    sys.stdout.write(
        f"{made.card.to_markdown(tensors=False)}\n"
        f"{made.engine} continues a Python function, greedily, {made.tokens_per_second:.0f} tokens/s:\n\n"
        f"{_indented(made.prompt + made.generated)}\n\n"
        f"The model is tiny: it writes what looks like Python, not what works.\n"
        f"Card  {card_path(made.path)} tells of every tensor\n"
        f"next  tersor verify {made.path}\n"
    )


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.rstrip().splitlines())
