"""Options that say how images become what a net takes, the same for every verb that reads them."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from tersor.core.errors import SchemeError
from tersor.evaluation.nets.images import Preparation

__all__ = ["MeanOption", "SizeOption", "StdOption", "preparation_of"]

MeanOption = Annotated[
    str, typer.Option(metavar="R,G,B", help="Nets: what is subtracted from each channel, of pixels in 0 … 1.")
]
StdOption = Annotated[str, typer.Option(metavar="R,G,B", help="Nets: what each channel is then divided by.")]
SizeOption = Annotated[
    str, typer.Option(metavar="HxW", help="Nets: what images of a folder are resized to. Default: as they are.")
]


def preparation_of(mean: str, std: str, size: str) -> Preparation:
    """Return what the three options say; SchemeError for one that is no list of numbers, or no size.

    >>> preparation_of("0.5", "0.25", "32").size
    (32, 32)
    """
    return Preparation(mean=_numbers("--mean", mean), std=_numbers("--std", std), size=_parsed_size(size))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise SchemeError(f"{option} takes numbers with commas between, such as 0.5,0.5,0.5; got {text!r}") from error


def _parsed_size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise SchemeError(f"--size is height x width, such as 224x224, or one number for both; got {text!r}")
    return int(match[1]), int(match[2] or match[1])
