"""What `tersor analyse` and `tersor plan` both ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.calibrate.text import BUILT_IN
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.planning.analysing import Study
from tersor.pipeline.planning.targets import target_named

__all__ = [
    "FormatsOption",
    "HolderOption",
    "PlannedMethodOption",
    "StatisticsOption",
    "TargetOption",
    "listed",
    "study_of",
]

TargetOption = Annotated[
    str,
    typer.Option(
        metavar="T",
        help="Whose formats tensors may take: cpu, gpu or mobile, each by llama.cpp; or a machine by name (`tersor "
        "estimate --list`), with its memory and bandwidth.",
    ),
]
FormatsOption = Annotated[
    str | None,
    typer.Option(metavar="F,F,…", help="The formats that tensors may take, instead of the target's; at most 127."),
]
HolderOption = Annotated[
    str,
    typer.Option(
        "--container",
        metavar="C",
        help="What shall hold the model: gguf, or compressed-tensors, whose matrices take groups of integers.",
    ),
]
PlannedMethodOption = Annotated[
    str,
    typer.Option("--method", "-m", metavar="M", help="What will round the model: its errors are what is measured."),
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Take what tersor calibrate has saved instead of a text."),
]


def study_of(
    target: str,
    formats: str | None,
    method: str,
    calibration: tuple[str | None, int, int | None, str | None, int, int],
    statistics: Path | None,
    *,
    container: str,
    threads: int,
) -> Study:
    """Return what the options ask for; `calibration` as Calibration takes it."""
    source, *cut = calibration
    text = Calibration(source or BUILT_IN, *cut)  # type: ignore[arg-type]  # in the order of its fields
    held = target_named(target, listed(formats), container).formats
    return Study(held, method, text, statistics, container, threads=threads)


def listed(formats: str | None) -> tuple[str, ...]:
    """Return the names in what was typed as a FormatsOption; none where nothing was."""
    return tuple(name.strip() for name in formats.split(",")) if formats else ()
