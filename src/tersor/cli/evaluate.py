"""`tersor evaluate`: how far an artefact is from the model that it was made from."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.options.images import MeanOption, SizeOption, StdOption, preparation_of
from tersor.cli.screen.evaluations import print_evaluation, print_limits
from tersor.cli.screen.layers import print_layers
from tersor.cli.screen.output import JsonOption, console, print_json, refuse_given
from tersor.cli.screen.progress import progress_bar
from tersor.cli.screen.published import published_command
from tersor.core.errors import MissingError, SchemeError
from tersor.core.evaluation import Evaluation, LayerError
from tersor.core.records import plain
from tersor.evaluation.language.demands import Demands
from tersor.evaluation.nets.images import Preparation
from tersor.pipeline import evaluate as pipeline
from tersor.pipeline.nets import evaluate_net_command, is_net_name

__all__ = ["EXIT_CODES", "evaluate"]

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, None: 0}
"""The verdict over all limits → exit code; 2 stays bad usage."""
_Found = tuple[Evaluation, tuple[LayerError, ...]]


def evaluate(
    context: typer.Context,
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT",
            help="A GGUF, any part of a split one; a model folder, quantized (gptq, awq, compressed-tensors) or not; "
            "or a PyTorch net as package.module:function that returns it.",
        ),
    ],
    against: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The model it was made from: folder, file, GGUF or Hugging Face id; or a file of --save-reference; "
            "for a net another package.module:function.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT",
            help="A UTF-8 text like that of your use; default: a built-in one. For a net a folder of images with a "
            "subfolder for each class, or an .npz of images and labels.",
        ),
    ] = None,
    choices: Annotated[
        Path | None,
        typer.Option(
            metavar="JSONL",
            help="Questions instead of a text: one object a line with context, choices, answer, or as HellaSwag or "
            "ARC have them.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--context", min=4, metavar="N", help="Tokens of a window. Default: 512, or what the model knows."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Of the sliding perplexity. Default: half a window; 0 leaves it out."),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take N windows or questions: the first, or see --seed.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Take a random subset of windows.")] = None,
    reference_engine: Annotated[
        str,
        typer.Option(
            metavar="auto|transformers|llama.cpp",
            help="What runs the reference. llama.cpp gets a lossless GGUF, made for this run.",
        ),
    ] = "auto",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:FUNCTION", help="A metric of your own, see tersor.evaluate. May be repeated."),
    ] = None,
    max_kl: Annotated[float | None, typer.Option(metavar="NATS", help="Limit: largest mean divergence.")] = None,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Limit: 0.02 allows 2 % more perplexity.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Limit: smallest share of equal top tokens, or answers.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Limit, nets and questions: 0.01 allows 1 % fewer right.")
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option(metavar="X", help="Limit: largest ratio of time per token to MODEL's; runs `tersor bench`."),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Store the reference's predictions, for later runs without that model."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of each prediction that --save-reference stores. Default: 64."),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Also compare layer by layer: where error enters and grows, what is broken."),
    ] = False,
    mean: MeanOption = "0,0,0",
    std: StdOption = "1,1,1",
    size: SizeOption = "",
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Add the result to the Card beside the artefact, if there is one.")
    ] = True,
    threads: Annotated[
        int, typer.Option(min=0, metavar="N", help="Threads of each of the two engines; 0: half of the cores.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure how far a GGUF, a model folder or a quantized PyTorch net is from the model that it was made from.

    Perplexity as llama-perplexity has it and with a sliding window, KL divergence, agreement of the top tokens, each
    with its 95 % interval, beside the noise floor: the same between two runs of the full model. The tokens that
    suffered most are shown in their text. Of a net: accuracies, agreement, what each class loses. With limits the exit
    code is 0 for pass, 1 for fail, 3 for inconclusive: the interval holds the limit, and you are told how much data
    would settle it.

    \b
    Examples:
      tersor evaluate model.gguf --against org/name --data text.txt --max-kl 0.05
      tersor evaluate model-gptq --against org/name --data text.txt
      tersor evaluate nets.resnet:int8 --against nets.resnet:full --data images/
    """
    command = published_command(context)
    demands: Demands = {
        "max_kl": max_kl,
        "max_perplexity_increase": max_perplexity_increase,
        "min_agreement": min_agreement,
        "max_accuracy_drop": max_accuracy_drop,
    }
    functions = {name.rpartition(":")[2]: _function(name) for name in metric or ()}
    if is_net_name(artefact):
        refuse_given(context, _OF_LANGUAGE, "a net")
        preparation = preparation_of(mean, std, size)
        found = _net(artefact, against, data, preparation, functions, layers=layers, command=command, demands=demands)
    else:
        refuse_given(context, ("mean", "std", "size"), "a language model")
        settings: pipeline.Settings = {
            **demands,
            "context": window,
            "stride": stride,
            "windows": windows,
            "seed": seed,
            "metrics": functions,
            "reference_engine": reference_engine,
            "save_reference": save_reference,
            "top_k": top_k,
            "threads": threads,
            "max_latency_ratio": max_latency_ratio,
        }
        files = _Files(artefact, against, data, choices)
        found = _language(files, settings, layers=layers, save=save, command=command)
    _show(*found, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Files:
    artefact: str
    against: str
    data: Path | None
    choices: Path | None


_OF_LANGUAGE = (
    *("choices", "window", "stride", "windows", "seed", "reference_engine", "save_reference", "top_k", "threads"),
    "max_latency_ratio",
)
"""Parameters that mean nothing for a net."""


def _language(files: _Files, settings: pipeline.Settings, *, layers: bool, save: bool, command: str) -> _Found:
    rows: tuple[LayerError, ...] = ()
    if layers:
        with progress_bar(unit="weights") as progress:
            rows = pipeline.layer_errors(
                files.artefact,
                against=files.against,
                data=files.data,
                save=save,
                threads=settings.get("threads", 0),
                progress=progress,
            )
    with progress_bar(unit="tokens") as progress:
        found = pipeline.evaluate(
            files.artefact,
            against=files.against,
            data=files.data,
            choices=files.choices,
            save=save,
            command=command,
            progress=progress,
            **settings,
        )
    return found, rows


def _net(
    artefact: str,
    against: str,
    data: Path | None,
    preparation: Preparation,
    functions: dict[str, Any],
    *,
    layers: bool,
    command: str,
    demands: Demands,
) -> _Found:
    if data is None:
        raise SchemeError("a net is measured on images: give --data, a folder with a subfolder a class, or an .npz")
    with progress_bar(unit="items") as progress:
        return evaluate_net_command(
            artefact,
            against=against,
            data=data.expanduser(),
            preparation=preparation,
            metrics=functions,
            layers=layers,
            command=command,
            progress=progress,
            **demands,
        )


def _show(found: Evaluation, rows: tuple[LayerError, ...], *, as_json: bool) -> None:
    """Print what was found, and leave with the exit code of the verdict."""
    if as_json:
        layers = {"layers": plain(rows)} if rows else {}
        print_json({"outcome": found.outcome, **plain(found), **layers})
    else:
        screen = console()
        print_evaluation(screen, found)
        if rows:
            screen.print()
            print_layers(screen, rows)
        print_limits(screen, found)
    code = EXIT_CODES[found.outcome]
    if code:
        raise typer.Exit(code)


def _function(name: str) -> Any:
    """Import MODULE:FUNCTION; modules of the current folder are found too."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise SchemeError(f"--metric {name!r} must be MODULE:FUNCTION, such as mymetrics:entropy_change")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise MissingError(f"--metric {name}: {error}") from error
    except Exception as error:  # whatever the module does when it is imported, it is not ours
        raise SchemeError(f"--metric {name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
