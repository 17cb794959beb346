"""`tersor.quantize`: from whatever names a model to a file, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from tersor.calibrate.text import BUILT_IN
from tersor.core.card import Card
from tersor.core.errors import SchemeError
from tersor.models import Model, load
from tersor.pipeline import quantize as pipeline
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.steps.planning import UserChoices

__all__ = ["Options", "quantize"]


class Options(UserChoices, total=False):
    """What `tersor.quantize` takes beyond the model and the method; see `tersor.pipeline.quantize.quantize`.

    container, resume, force, proof, save_imatrix, device  see `tersor.pipeline.calibrated.quantize.How`
    """

    split_max_bytes: int | None
    split_max_tensors: int | None
    threads: int
    measure: bool
    dry_run: bool
    command: str
    progress: pipeline.Progress | None
    container: str
    resume: bool
    force: bool
    proof: bool
    save_imatrix: Path | None
    device: str


def quantize(
    model: str | Path | Model,
    format: str = "q4_k_m",  # noqa: A002 (the word of the command line)
    *,
    output: str | Path,
    method: str | None = None,
    calibration: str | Path | Calibration | None = None,
    **options: Unpack[Options],
) -> Card:
    """Write `model` in `format` to `output`, with its Card beside, and return the Card.

    model        what `tersor.load` takes, or what it returned
    format       a file type such as "q4_k_m" (`tersor formats --files` lists them); for another container than
                 "gguf" a plain format such as "int4-g128"
    method       "rtn", "gptq", "awq+gptq", "best", …; None: "best" where there is calibration text, else "rtn"
    calibration  a file, a folder, a dataset id, "builtin", or a Calibration with all its settings
    Options and errors are those of `tersor.pipeline.quantize.quantize` and of
    `tersor.pipeline.calibrated.quantize.quantize_calibrated`. Under torchrun only one rank has a Card: the others raise
    SchemeError, use the command line there.
    """
    source = model if isinstance(model, Model) else load(model)
    chosen = method or ("rtn" if calibration is None else "best")
    is_plain = chosen == "rtn" and calibration is None and options.get("container", "gguf") == "gguf"
    if is_plain or options.get("dry_run"):
        plain: dict[str, Any] = {key: value for key, value in options.items() if key not in _CALIBRATED}
        return pipeline.quantize(source, format, Path(output), **plain)
    text = calibration if isinstance(calibration, Calibration) else Calibration(source=calibration or BUILT_IN)
    given: dict[str, Any] = {key: value for key, value in options.items() if key in How.__dataclass_fields__}
    how = How(method=chosen, calibration=text, **given)
    choices: dict[str, Any] = {key: value for key, value in options.items() if key in UserChoices.__annotations__}
    card = quantize_calibrated(source, format, Path(output), how, **choices)
    if card is None:
        raise SchemeError(
            "this is not the first of several ranks, and has no Card: use `tersor quantize` under torchrun"
        )
    return card


_CALIBRATED = ("container", "resume", "force", "proof", "save_imatrix", "device")
