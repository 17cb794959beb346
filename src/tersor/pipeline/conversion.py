"""`tersor.quantize`: from whatever names a model to a file, in one call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from tersor.calibrate.text import BUILT_IN
from tersor.core.card import Card
from tersor.core.errors import SchemeError
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe
from tersor.models import Model, load
from tersor.pipeline import quantize as pipeline
from tersor.pipeline.calibrated.quantize import How
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.training import settings
from tersor.pipeline.nets.mobile.budget import Budget
from tersor.pipeline.nets.mobile.fitting import PhoneResult, quantize_for_phone
from tersor.pipeline.nets.mobile.programs import SUFFIXES
from tersor.pipeline.nets.quantizing import NetHow, QuantizedResult, check_output, is_network, quantize_network
from tersor.pipeline.nets.training import Training
from tersor.pipeline.planning.plan_file import PlanFile
from tersor.pipeline.steps.planning import UserChoices
from tersor.pipeline.ways import take

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["NetOptions", "Options", "quantize"]


class Options(UserChoices, total=False):
    """What `tersor.quantize` takes beyond the model and the method; see `tersor.pipeline.quantize.quantize`.

    container, activations, resume, force, proof, save_imatrix, device, statistics, training, train  see
    `tersor.pipeline.calibrated.quantize.How`
    """

    split_max_bytes: int | None
    split_max_tensors: int | None
    threads: int
    measure: bool
    dry_run: bool
    command: str
    progress: pipeline.Progress | None
    container: str
    activations: bool
    resume: bool
    force: bool
    proof: bool
    save_imatrix: Path | None
    device: str
    statistics: Path | None
    training: settings.Training | None
    train: str | Path | Calibration | None


class NetOptions(TypedDict, total=False):
    """What `tersor.quantize` takes for a net; see `tersor.pipeline.nets.quantizing.NetHow`."""

    example_inputs: Any
    weights: Path | None
    recipe: Recipe
    target: str | None
    activations: str | None
    data: Any
    max_drop: float | None
    force: bool
    limit: int | None
    plan: PlanFile | Path | None
    training: Training | None
    bench: bool
    budget: Budget | None
    threads: int
    command: str


@overload
def quantize(
    model: str | Path | Model,
    format: str = "q4_k_m",
    *,
    output: str | Path,
    method: str | None = None,
    calibration: str | Path | Calibration | None = None,
    **options: Unpack[Options],
) -> Card: ...


@overload
def quantize(
    model: Module | Net, format: str = "int8", *, calibration: object, **options: Unpack[NetOptions]
) -> QuantizedResult: ...


def quantize(
    model: str | Path | Model | Module | Net,
    format: str | None = None,  # noqa: A002 (the word of the command line)
    *,
    calibration: Any = None,
    **options: Any,
) -> Card | QuantizedResult | PhoneResult:
    """Write a language model in `format` to `output`, with its Card beside, and return the Card; or round a net.

    A torch module, a Net, an .onnx file or "package.module:factory" is a net with activations: `format` is "int8" (or
    "int4" to "int2" for its weights), `calibration` yields batches or is a path, options are those of `NetHow`. What is
    returned can be called and saved; with `output` it is saved, and its Card returned. With target="mobile", or an
    output that ends in .pte or .ort, it becomes a program for phones that keeps to `budget`, without a format in the
    most precise one that does: a PhoneResult. For a language model:

    model        what `tersor.load` takes, or what it returned
    format       a file type such as "q4_k_m" (`tersor formats --files` lists them); for another container than
                 "gguf" a plain format such as "int4-g128"
    method       "rtn", "gptq", "awq+gptq", "best", "qat", …; None: "best" where there is calibration text, else "rtn"
    calibration  a file, a folder, a dataset id, "builtin", or a Calibration with all its settings; or, instead of a
                 text, statistics=DIR of `tersor calibrate`
    The codes of a model that is quantized already are kept where the format has them; the Card tells where not.
    Options and errors are those of `tersor.pipeline.quantize.quantize` and of
    `tersor.pipeline.calibrated.quantize.quantize_calibrated`. Under torchrun only one rank has a Card: the others raise
    SchemeError, use the command line there.
    """
    if is_network(model):
        return _quantized_net(model, format, calibration, **options)
    return _quantized_model(model, format or "q4_k_m", calibration, **options)  # type: ignore[arg-type]  # is_network


def _quantized_net(
    net: Any, name: str | None, calibration: Any, output: str | Path | None = None, **options: Any
) -> Card | QuantizedResult | PhoneResult:
    odd = sorted(set(options) - set(NetHow.__dataclass_fields__))
    if odd or calibration is None:
        told = f"no option {', '.join(odd)}" if odd else "calibration data is needed: batches, or a path"
        raise SchemeError(f"quantizing a net: {told}; there are {', '.join(NetHow.__dataclass_fields__)}")
    how, suffix = NetHow(calibration=calibration, **options), "" if output is None else Path(output).suffix
    if output is not None:
        check_output(Path(output), net, how.weights)
    made: QuantizedResult | PhoneResult
    if how.target == "mobile" or suffix in SUFFIXES:
        chosen = name if name is not None or (how.budget is not None and how.budget.demands) else "int8"
        made = quantize_for_phone(net, chosen, how, suffix=suffix or ".pte")
    else:
        made = quantize_network(net, name or "int8", how)
    return made if output is None else made.save(output)


def _quantized_model(
    model: str | Path | Model,
    format: str,  # noqa: A002
    calibration: str | Path | Calibration | None,
    *,
    output: str | Path,
    method: str | None = None,
    **options: Unpack[Options],
) -> Card:
    source = model if isinstance(model, Model) else load(model)
    is_calibrated = calibration is not None or options.get("statistics") is not None
    chosen = method or ("best" if is_calibrated else "rtn")
    settings.check_train(chosen, options.get("train"))
    text = calibration if isinstance(calibration, Calibration) else Calibration(source=calibration or BUILT_IN)
    if settings.is_trained(chosen) and not isinstance(calibration, Calibration):
        text = replace(text, sequences=settings.SEQUENCES)
    given: dict[str, Any] = {key: value for key, value in options.items() if key in How.__dataclass_fields__}
    if isinstance(given.get("train"), str | Path):
        given["train"] = Calibration(given["train"], settings.TRAINING_SEQUENCES)
    how = How(method=chosen, calibration=text, **given)
    rest: dict[str, Any] = {key: value for key, value in options.items() if key not in given}
    card = take(source, format, Path(output), how, is_calibrated=is_calibrated, **rest)
    if card is None:
        raise SchemeError(
            "this is not the first of several ranks, and has no Card: use `tersor quantize` under torchrun"
        )
    return card
