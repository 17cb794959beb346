"""`tersor quantize`: a model becomes a GGUF."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from tersor.calibrate.text import BUILT_IN
from tersor.cli.options.images import MeanOption, StdOption, preparation_of
from tersor.cli.options.language import (
    OF_CALIBRATION,
    OF_TEXT,
    CalibrationOption,
    ChunkOption,
    ContainerOption,
    DeviceOption,
    DryRunOption,
    EmbeddingFormatOption,
    FallbackOption,
    FieldOption,
    FileTypeOption,
    IgnoreConfigOption,
    LengthOption,
    MethodOption,
    ModelArgument,
    OutputFormatOption,
    OutputOption,
    PlanOption,
    SaveImatrixOption,
    SearchOption,
    SeedOption,
    SequencesOption,
    SplitSizeOption,
    SplitTensorsOption,
    TensorFormatOption,
    ThreadsOption,
)
from tersor.cli.options.nets import (
    OF_LANGUAGE,
    OF_NETS,
    ActivationsOption,
    DataOption,
    EngineOption,
    EpochsOption,
    LeaveOption,
    MaxDropOption,
    MaxFileOption,
    MaxLatencyOption,
    MaxMemoryOption,
    NetSizeOption,
    PhoneOption,
    TargetOption,
    TrainOption,
    WeightsOption,
)
from tersor.cli.options.training import TrainSequencesOption, taken, train_of, training_of
from tersor.cli.screen.nets import NetArguments, quantize_net_command
from tersor.cli.screen.output import JsonOption, is_given, print_json, refuse_given
from tersor.cli.screen.progress import progress_bar
from tersor.cli.screen.published import published_command
from tersor.core.card import Card, card_path
from tersor.core.errors import SchemeError
from tersor.core.quantities import size
from tersor.methods import METHODS
from tersor.models import Model, load
from tersor.models.outline import look
from tersor.pipeline.calibrated.quantize import How, importance_from
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.nets.mobile.budget import Budget
from tersor.pipeline.nets.quantizing import is_network
from tersor.pipeline.planning.plan_file import PlanFile
from tersor.pipeline.steps.planning import UserChoices
from tersor.pipeline.ways import take, way_of

__all__ = ["parse_size", "quantize"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SHOWN_FALLBACKS = 3


def quantize(
    context: typer.Context,
    model: ModelArgument,
    output: OutputOption,
    file_type: FileTypeOption = "q4_k_m",
    plan: PlanOption = None,
    tensor_format: TensorFormatOption = None,
    output_format: OutputFormatOption = None,
    embedding_format: EmbeddingFormatOption = None,
    search: SearchOption = "best",
    fallback: FallbackOption = True,
    dry_run: DryRunOption = False,
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    threads: ThreadsOption = 0,
    ignore_config: IgnoreConfigOption = None,
    method: MethodOption = None,
    calibration: CalibrationOption = None,
    container: ContainerOption = "gguf",
    activations: Annotated[
        bool,
        typer.Option(
            "--round-activations",
            help="Have engines round activations to 8 bits too: int8-channel or fp8_e4m3 in compressed-tensors.",
        ),
    ] = False,
    calibration_sequences: SequencesOption = 128,
    calibration_length: LengthOption = None,
    calibration_field: FieldOption = None,
    calibration_chunk: ChunkOption = 4,
    seed: SeedOption = 0,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Take what tersor calibrate has saved instead of a text: no calibration runs."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the importance of columns from llama.cpp's imatrix file.")
    ] = None,
    save_imatrix: SaveImatrixOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Refuse to begin anew: what a stopped run has finished must be of this command, which goes on with "
            "it.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the result even if plain rounding would be better.")
    ] = False,
    proof: Annotated[
        bool, typer.Option("--proof/--no-proof", help="Measure the gain on calibration sequences that are kept back.")
    ] = True,
    device: DeviceOption = "cpu",
    weights: WeightsOption = None,
    data: DataOption = None,
    max_drop: MaxDropOption = None,
    train: TrainOption = None,
    train_sequences: TrainSequencesOption = None,
    epochs: EpochsOption = None,
    kind: ActivationsOption = None,
    engine: EngineOption = "onnxruntime",
    target: TargetOption = None,
    max_memory_mb: MaxMemoryOption = None,
    max_latency_ms: MaxLatencyOption = None,
    max_file_mb: MaxFileOption = None,
    phone: PhoneOption = None,
    leave: LeaveOption = None,
    mean: MeanOption = "0,0,0",
    std: StdOption = "1,1,1",
    size_of: NetSizeOption = "",
    as_json: JsonOption = False,
) -> None:
    """Turn a model into a GGUF that stock llama.cpp runs, or a net into an ONNX file on integers, with its Card.

    With --calibration, every block is quantized knowing what its matrices see; a run that is stopped goes on
    when it is typed again, and torchrun spreads it over processes.
    Memory stays bounded however large the model is; the output appears whole or not at all. Beside OUT.gguf lie
    OUT.card.html, .md and .json: hashes, plan, error of every tensor, fallbacks, time, versions, command.

    \b
    Example:
      tersor quantize org/name -o name.gguf --format q4_k_m --output-format q8_0
      tersor quantize org/name -o name.gguf --format q4_k_m --calibration my-text/
      tersor quantize org/name -o name.gguf --plan plan.yaml --calibration my-text/
      tersor quantize org/name -o name-int4 --format int4-g128 --container compressed-tensors --calibration my.jsonl
      tersor quantize net.onnx -o net-int8.onnx --format int8 --calibration images/ --data labelled/ --max-drop 0.5
      tersor quantize net.onnx -o net.pte --target mobile --max-memory-mb 20 --max-latency-ms 50 --calibration images/
    """
    command = published_command(context)
    if is_network(model):
        refuse_given(context, OF_LANGUAGE, "a net")
        images = preparation_of(mean, std, size_of)
        asked = engine if plan is None or is_given(context, "engine") else None
        made = NetArguments(calibration, weights, data, max_drop, asked, tuple(leave or ()), images, kind)
        made = replace(made, threads=threads, force=force, method=method, train=train, epochs=epochs or made.epochs)
        budget = Budget(max_memory_mb, max_latency_ms, max_file_mb, phone)
        made = replace(made, resume=resume, command=command, target=target, budget=budget, plan=plan)
        quantize_net_command(model, output, _net_format(context, file_type), made, as_json=as_json)
        return
    refuse_given(context, OF_NETS, "a language model")
    of_ends = UserChoices(output_format=output_format, embedding_format=embedding_format)
    choices = UserChoices(**of_ends, search=search, fallback=fallback)
    source = (look if dry_run else load)(model, ignore_config=ignore_config or ())
    planned, file_type, container = _planned(context, plan, file_type, container)
    choices.update(_of_tensors(source, tensor_format, planned, imatrix))
    cut = calibration_length, calibration_field, seed, calibration_chunk
    if statistics is not None:
        refuse_given(context, OF_TEXT if train is None else OF_CALIBRATION, "saved statistics")
    is_calibrated = calibration is not None or statistics is not None
    how = How(
        method=_method(method, planned, is_calibrated=is_calibrated),
        calibration=Calibration(calibration or BUILT_IN, taken(context, method, calibration_sequences), *cut),
        statistics=statistics,
        container=container,
        activations=activations,
        resume=resume,
        force=force,
        proof=proof,
        save_imatrix=save_imatrix,
        device=device,
        training=training_of(method, epochs),
        train=train_of(method, train, train_sequences, calibration_field, seed),
        threads=threads,
        split_max_bytes=None if split_max_size is None else parse_size(split_max_size),
        split_max_tensors=split_max_tensors,
        command=command,
    )
    card = _made(source, file_type, output, how, choices, dry_run=dry_run, is_calibrated=is_calibrated)
    if card is not None and as_json:  # without one another rank writes and speaks
        print_json(card.to_object())
    elif card is not None:
        sys.stdout.write(_summary(card, model, output))


def _planned(
    context: typer.Context, plan: Path | None, file_type: str, container: str
) -> tuple[PlanFile | None, str, str]:
    """Read the plan; return it with the file type and container that follow, those given where there is none."""
    if plan is None:
        return None, file_type, container
    planned = PlanFile.load(plan)
    if is_given(context, "file_type"):
        raise SchemeError("--format and --plan both say what tensors become; give one of them")
    if is_given(context, "container") and container != planned.where:
        raise SchemeError(f"the plan holds formats of {planned.where}, and {container} cannot hold those")
    return planned, planned.file_type, planned.where


def _of_tensors(source: Model, given: list[str] | None, planned: PlanFile | None, imatrix: Path | None) -> UserChoices:
    """Return what is chosen for single tensors, and what is known of them."""
    made = UserChoices(tensor_formats=(*(given or ()), *(planned.tensor_formats(source) if planned else ())))
    return made if imatrix is None else {**made, "importance": importance_from(imatrix, source)}


def _method(given: str | None, planned: PlanFile | None, *, is_calibrated: bool) -> str:
    """What was asked for, else what the plan was made for, else what the calibration allows."""
    if given is not None:
        return given
    if planned is not None and planned.method:
        row = METHODS.get(planned.method)
        if row is not None and row.needs and not is_calibrated:
            raise SchemeError(
                f"the plan was made for {planned.method}, which has to know a text: give --calibration or --statistics "
                f"(it was made on {planned.calibration or 'a text'}), or --method rtn for plain rounding"
            )
        return planned.method
    return "best" if is_calibrated else "rtn"


def _net_format(context: typer.Context, file_type: str) -> str | None:
    """What a net becomes; None: nothing was asked for."""
    return file_type if is_given(context, "file_type") else None


def _made(
    source: Model, file_type: str, output: Path, how: How, choices: UserChoices, *, dry_run: bool, is_calibrated: bool
) -> Card | None:
    """Take the way that method and container ask for."""

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    way = way_of(source, how, is_calibrated=is_calibrated)
    with progress_bar(unit="weights" if way == "calibrated" else "bytes") as progress:
        how = replace(how, progress=progress, tell=tell)
        return take(source, file_type, output, how, is_calibrated=is_calibrated, dry_run=dry_run, **choices)


def parse_size(text: str) -> int:
    """Bytes in `text`: 2GiB is binary, 2GB decimal, 2G binary too; SchemeError if it is no size.

    >>> parse_size("2GiB"), parse_size("1.5 kB"), parse_size("2G"), parse_size("512")
    (2147483648, 1500, 2147483648, 512)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise SchemeError(f"{text!r} is not a size; write for example 2GiB, 500MB or 1000000")
    number, unit, binary = match.groups()
    base = 1000 if text.strip().lower().endswith("b") and not binary else 1024
    return int(Fraction(number) * base ** _POWERS[unit.lower()])


def _summary(card: Card, model: str, output: Path) -> str:
    error, plan = card.mean_error, card.plan
    before = card.source_bytes * 8 / max(plan.weights, 1)
    cost = "" if error is None else f", mean relative error {error:.2%}"
    headline = (
        f"{card.name} → {plan.recipe.format}: {size(card.source_bytes)} → {size(card.nbytes)} "
        f"({card.ratio:.2f}× smaller), {before:.2f} → {plan.bits_per_weight:.2f} bits per weight{cost}"
    )
    lines = [headline, *_gain(card), *_fallbacks(card)]
    lines += [f"note: {note}" for note in card.notes]
    if card.dry_run:
        lines += [f"would write {artefact.name}, {artefact.nbytes:,} bytes" for artefact in card.artefacts]
        lines.append("nothing was written; run again without --dry-run")
        return "\n".join(lines) + "\n"
    if output.is_dir():
        lines.append(f"wrote {output} in {card.seconds.total:.1f} s: {', '.join(a.name for a in card.artefacts)}")
        lines.append(f"Card  {card_path(output / output.name, 'html')} (and .md, .json)")
        return "\n".join(lines) + "\n"
    first = output.parent / card.artefacts[0].name
    more = f" and {len(card.artefacts) - 1} more parts" if len(card.artefacts) > 1 else ""
    lines.append(f"wrote {first}{more} in {card.seconds.total:.1f} s")
    lines.append(f"Card  {card_path(output, 'html')} (and .md, .json)")
    lines.append(f"next  {shlex.join(['tersor', 'verify', str(first), '--against', model])}")
    return "\n".join(lines) + "\n"


def _gain(card: Card) -> list[str]:
    """What the method was worth, if that was measured."""
    lines = []
    for evaluation in card.evaluations:
        ours, plain = evaluation.metric("kl_mean"), evaluation.metric("kl_mean_plain_rounding")
        if ours is not None and plain is not None:
            lines.append(
                f"{card.plan.recipe.method} on held-out text: divergence {ours.value:.3g} nats, plain rounding "
                f"{plain.value:.3g} ({ours.value / plain.value if plain.value else 1:.2f}×)"
            )
    return lines


def _fallbacks(card: Card) -> list[str]:
    found = card.plan.fallbacks
    if not found:
        return []
    share = sum(tensor.weights for tensor in found) / max(card.plan.weights, 1)
    lines = [f"fallbacks: {len(found)} tensors ({share:.0%} of the weights) could not take their format"]
    lines += [f"  {t.name}: {t.wanted} → {t.format}, {t.shape[-1]} columns" for t in found[:SHOWN_FALLBACKS]]
    return lines + (["  … the Card names all"] if len(found) > SHOWN_FALLBACKS and not card.dry_run else [])
