"""`tersor analyse`: what every format would cost every tensor."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tersor.calibrate.text import BUILT_IN
from tersor.cli.options.language import (
    OF_TEXT,
    CalibrationOption,
    ChunkOption,
    FieldOption,
    IgnoreConfigOption,
    LengthOption,
    ModelArgument,
    SeedOption,
    SequencesOption,
    ThreadsOption,
)
from tersor.cli.options.planning import (
    FormatsOption,
    HolderOption,
    PlannedMethodOption,
    StatisticsOption,
    TargetOption,
    study_of,
)
from tersor.cli.screen.analysis import analysis_table, checks
from tersor.cli.screen.output import JsonOption, print_json, refuse_given
from tersor.cli.screen.progress import progress_bar
from tersor.core.records import plain
from tersor.models import load
from tersor.pipeline.planning.analysing import analyse as run
from tersor.pipeline.planning.page import save_page

__all__ = ["analyse"]


def analyse(
    context: typer.Context,
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    target: TargetOption = "cpu",
    formats: FormatsOption = None,
    container: HolderOption = "gguf",
    method: PlannedMethodOption = "best",
    calibration: CalibrationOption = BUILT_IN,
    calibration_sequences: SequencesOption = 128,
    calibration_length: LengthOption = None,
    calibration_field: FieldOption = None,
    calibration_chunk: ChunkOption = 4,
    seed: SeedOption = 0,
    statistics: StatisticsOption = None,
    threads: ThreadsOption = 0,
    ignore_config: IgnoreConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how sensitive every tensor of a language model is to every format that it could take.

    Each tensor is rounded to each format by the method that will be used; one backward pass of random gradients over
    other text tells what that does to the predictions, and some tensors and mixes are measured to check it. The folder
    is what tersor plan --analysis takes, with a page of tables and heat maps. What is there already is gone on with.

    \b
    Example:
      tersor analyse org/name -o name-analysis --calibration my-text/
      tersor plan org/name --analysis name-analysis --bits-per-weight 3.5 -o plan.yaml
    """

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    if statistics is not None:
        refuse_given(context, OF_TEXT, "saved statistics")
    cut = calibration, calibration_sequences, calibration_length, calibration_field, seed, calibration_chunk
    study = study_of(target, formats, method, cut, statistics, container=container, threads=threads)
    source = load(model, ignore_config=ignore_config or ())
    with progress_bar(unit="weights") as progress:
        found = run(source, output, study, progress=progress, tell=tell)
    page = save_page(found)
    if as_json:
        print_json(plain(found.analysis))
        return
    analysis_table(found.analysis)
    took = ", ".join(f"{name} {value:.1f}" for name, value in found.analysis.seconds.items())
    lines = [f"estimates on {found.analysis.draws} draws, checked:", *checks(found.analysis)]
    lines += [f"wrote {output} (seconds: {took})", f"page  {page}"]
    lines.append(f"next  {shlex.join(['tersor', 'plan', model, '--analysis', str(output), '-o', 'plan.yaml'])} GOAL")
    sys.stdout.write("\n".join(lines) + "\n")
