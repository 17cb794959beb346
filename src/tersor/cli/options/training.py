"""How a language model is trained, as it is asked for on the command line; nets are asked for in nets.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.screen.output import is_given
from tersor.core.errors import SchemeError
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.training import settings

__all__ = ["TrainSequencesOption", "taken", "train_of", "training_of"]

TrainSequencesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Language models: how many sequences of --train, as long as those of --calibration. Default: 8192.",
    ),
]


def training_of(method: str | None, epochs: int | None) -> settings.Training | None:
    """How a language model is trained; None: the method does not train."""
    if settings.is_trained(method):
        return settings.of_epochs(epochs)
    if epochs is not None:
        raise SchemeError("--epochs means nothing for a language model unless the method is qat")
    return None


def train_of(
    method: str | None, source: Path | None, sequences: int | None, field: str | None, seed: int
) -> Calibration | None:
    """What training alone reads."""
    settings.check_train(method, source)
    if source is None:
        if sequences is not None:
            raise SchemeError("--train-sequences says how much of --train is read: give that too")
        return None
    return Calibration(source, settings.TRAINING_SEQUENCES if sequences is None else sequences, field=field, seed=seed)


def taken(context: typer.Context, method: str | None, asked: int) -> int:
    """How many sequences are taken of the text: training wants more where none are asked for."""
    takes_more = settings.is_trained(method) and not is_given(context, "calibration_sequences")
    return settings.SEQUENCES if takes_more else asked
