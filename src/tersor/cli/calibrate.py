"""`tersor calibrate`: what every matrix sees, gathered once for many formats."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tersor.calibrate.text import BUILT_IN
from tersor.cli.options.language import (
    CalibrationOption,
    ChunkOption,
    DeviceOption,
    FieldOption,
    IgnoreConfigOption,
    LengthOption,
    ModelArgument,
    SaveImatrixOption,
    SeedOption,
    SequencesOption,
)
from tersor.cli.screen.output import JsonOption, print_json
from tersor.cli.screen.progress import progress_bar
from tersor.containers.imatrix import write_imatrix
from tersor.core.quantities import size
from tersor.files.atomic import check_file
from tersor.models import load
from tersor.pipeline.calibrated import statistics as pipeline
from tersor.pipeline.calibrated.quantize import IMATRIX
from tersor.pipeline.calibrated.run import Calibration

__all__ = ["calibrate"]


def calibrate(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    calibration: CalibrationOption = BUILT_IN,
    calibration_sequences: SequencesOption = 128,
    calibration_length: LengthOption = None,
    calibration_field: FieldOption = None,
    calibration_chunk: ChunkOption = 4,
    seed: SeedOption = 0,
    save_imatrix: SaveImatrixOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Refuse to begin anew: blocks of a stopped run must be of this command, which goes on with them.",
        ),
    ] = False,
    device: DeviceOption = "cpu",
    ignore_config: IgnoreConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a language model over a text once, and save what every matrix sees: Hessians, importance, largest values.

    tersor quantize --statistics DIR then takes any method and format without running the model again. What is saved is
    seen by the model in full precision. With --calibration instead, every block is quantized for what the blocks before
    it became: a few percent better for gptq and awq, much better for best, which corrects errors of earlier layers.

    \b
    Example:
      tersor calibrate org/name -o saved --calibration my-text/
      tersor quantize org/name -o name-q4.gguf --format q4_k_m --statistics saved
      tersor quantize org/name -o name-q3.gguf --format q3_k_m --statistics saved --method gptq
    """

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    text = Calibration(
        calibration or BUILT_IN, calibration_sequences, calibration_length, calibration_field, seed, calibration_chunk
    )
    source = load(model, ignore_config=ignore_config or ())
    if save_imatrix is not None:
        check_file(save_imatrix, source.files, IMATRIX)
    with progress_bar(unit="weights") as progress:
        found = pipeline.calibrate(source, output, text, resume=resume, device=device, progress=progress, tell=tell)
    if found is None:
        return  # another rank writes and speaks
    if save_imatrix is not None:
        write_imatrix(save_imatrix, pipeline.importances_of(pipeline.open_statistics(output, source)))
    if as_json:
        print_json(found.to_object())
        return
    stages = ", ".join(f"{name} {value:.1f}" for name, value in found.stages.items())
    sys.stdout.write(
        f"{source.name}: {found.inputs} distinct inputs of matrices over {found.tokens:,} tokens of {found.corpus}\n"
        f"wrote {found.folder}, {size(found.nbytes)}, in {found.seconds:.1f} s ({stages})\n"
        f"next  {shlex.join(['tersor', 'quantize', model, '-o', 'OUT.gguf', '--statistics', str(output)])}\n"
    )
