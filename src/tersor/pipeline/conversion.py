"""`tersor.quantize`: from whatever names a model to a file, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from tersor.core.card import Card
from tersor.models import Model, load
from tersor.pipeline import quantize as pipeline
from tersor.pipeline.steps.planning import Choices

__all__ = ["Options", "quantize"]


class Options(Choices, total=False):
    """What `tersor.quantize` takes beyond model, format and output; see `tersor.pipeline.quantize.quantize`."""

    split_max_bytes: int | None
    split_max_tensors: int | None
    threads: int
    measure: bool
    dry_run: bool
    command: str
    progress: pipeline.Progress | None


def quantize(
    model: str | Path | Model,
    format: str = "q4_k_m",  # noqa: A002 (the word of the command line)
    *,
    output: str | Path,
    **options: Unpack[Options],
) -> Card:
    """Write `model` in `format` to the GGUF `output`, with its Card beside, and return the Card.

    model   what `tersor.load` takes, or what it returned
    format  a file type such as "q4_k_m"; `tersor formats --files` lists them
    Options and errors are those of `tersor.pipeline.quantize.quantize`.
    """
    source = model if isinstance(model, Model) else load(model)
    return pipeline.quantize(source, format, Path(output), **options)
