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
from tersor.cli.screen.output import JsonOption, print_json
from tersor.cli.screen.progress import progress_bar
from tersor.core.card import Card, card_path
from tersor.core.errors import SchemeError
from tersor.core.quantities import size
from tersor.models import Model, load
from tersor.pipeline.calibrated.checkpoint import convert
from tersor.pipeline.calibrated.quantize import How, importance_from, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.conversion import plainly
from tersor.pipeline.steps.lossless import quantized_source
from tersor.pipeline.steps.planning import Choices

__all__ = ["parse_size", "quantize"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SHOWN_FALLBACKS = 3


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder with config.json and weights, a .safetensors, .bin, .pt or .gguf file, or a Hugging Face "
        "id such as org/name.",
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The GGUF to write.")]
FileTypeOption = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        metavar="F",
        help="Which numbers the weights become: q4_k_m is the usual choice (4.9 bits a weight), q8_0 is nearly "
        "lossless, bf16 and f32 change nothing. `tersor formats --files` lists all.",
    ),
]
TensorFormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-format",
        metavar="PATTERN=FORMAT",
        help="Another format for all tensors whose GGUF name the regular expression finds, such as "
        "'ffn_down=q6_k' or 'blk\\.0\\.=q8_0'. May be repeated; the first that matches wins.",
    ),
]
OutputFormatOption = Annotated[
    str | None, typer.Option(metavar="F", help="Format of the output matrix: rounding it costs the most.")
]
EmbeddingFormatOption = Annotated[
    str | None, typer.Option(metavar="F", help="Format of the token embedding: rounding it costs the least.")
]
SearchOption = Annotated[
    str,
    typer.Option(
        metavar="best|ggml", help="How grid points are found: 'best' is ours; 'ggml' gives llama.cpp's very bytes."
    ),
]
FallbackOption = Annotated[
    bool,
    typer.Option(
        "--fallback/--no-fallback",
        help="A row that does not divide into blocks of its format takes a near one, named in the Card; "
        "--no-fallback stops instead.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and exact sizes; read and write no weight.")
]
SplitSizeOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Begin a new file before it exceeds this size, such as 2GiB.")
]
SplitTensorsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Begin a new file after N tensors.")]
ThreadsOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Threads of the encoder; 0: all cores. Never changes the bytes.")
]
IgnoreConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="A key of config.json that tersor does not know and that you know to be harmless."
    ),
]


MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="M",
        help="What chooses the grid points: rtn and hqq know no text; clip, gptq, gptaq, foem, qronos, autoround and "
        "best put errors where the calibration text feels them least. Rewrites stand before, as in awq+gptq or "
        "hadamard+best; awq alone means awq+clip. Default: best where --calibration is given, else rtn.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        "-c",
        metavar="TEXT",
        help="Text like that of your use: a file, a folder, JSON lines, Parquet, a dataset id, or 'builtin'.",
    ),
]
ContainerOption = Annotated[
    str,
    typer.Option(
        metavar="C",
        help="gguf for llama.cpp; gptq, gptq_v2, awq or compressed-tensors for transformers and vLLM: OUT is a folder "
        "then, and --format a plain one such as int4-g128.",
    ),
]


def quantize(
    context: typer.Context,
    model: ModelArgument,
    output: OutputOption,
    file_type: FileTypeOption = "q4_k_m",
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
    calibration_sequences: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many sequences of calibration text.")
    ] = 128,
    calibration_length: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Tokens in each. Default: 512, or what the model takes.")
    ] = None,
    calibration_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field of a row that holds the text or the messages.")
    ] = None,
    calibration_chunk: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences that go through a block at once: memory against speed.")
    ] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Shuffles the calibration documents; 0: their own order.")] = 0,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the importance of columns from llama.cpp's imatrix file.")
    ] = None,
    save_imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save what calibration saw as an imatrix file for llama.cpp.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the finished blocks of a run that was stopped.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the result even if plain rounding would be better.")
    ] = False,
    proof: Annotated[
        bool, typer.Option("--proof/--no-proof", help="Measure the gain on calibration sequences that are kept back.")
    ] = True,
    device: Annotated[str, typer.Option(metavar="D", help="Where calibration computes: cpu, cuda, cuda:1.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Turn a model into a GGUF that stock llama.cpp runs, with a Card that says what it cost.

    With --calibration, every block is quantized knowing what its matrices see; a run that is stopped goes on with
    --resume, and torchrun spreads it over processes.

    Memory stays bounded however large the model is; the output appears whole or not at all. Beside OUT.gguf lie
    OUT.card.html, .md and .json: hashes, plan, error of every tensor, fallbacks, time, versions, command.

    \b
    Example:
      tersor quantize org/name -o name.gguf --format q4_k_m --output-format q8_0
      tersor quantize org/name -o name.gguf --format q4_k_m --calibration my-text/
      tersor quantize org/name -o name-int4 --format int4-g128 --container compressed-tensors --calibration my.jsonl
    """
    limit = None if split_max_size is None else parse_size(split_max_size)
    choices = Choices(
        tensor_formats=tensor_format or (),
        output_format=output_format,
        embedding_format=embedding_format,
        search=search,
        fallback=fallback,
    )
    source = load(model, ignore_config=ignore_config or ())
    if imatrix is not None:
        choices["importance"] = importance_from(imatrix, source)
    text = Calibration(
        source=calibration or BUILT_IN,
        sequences=calibration_sequences,
        length=calibration_length,
        field=calibration_field,
        seed=seed,
        chunk=calibration_chunk,
    )
    how = How(
        method=method or ("rtn" if calibration is None else "best"),
        calibration=text,
        container=container,
        activations=activations,
        resume=resume,
        force=force,
        proof=proof,
        save_imatrix=save_imatrix,
        device=device,
        threads=threads,
        split_max_bytes=limit,
        split_max_tensors=split_max_tensors,
        command=_command(context.obj or [], model, output),
    )
    is_rounded = how.method == "rtn" and calibration is None
    if is_rounded and not dry_run and container != "gguf" and quantized_source(source):
        card: Card | None = convert(source, file_type, output, container, command=how.command)
    else:
        is_plain = dry_run or (is_rounded and container == "gguf")
        card = (_plainly if is_plain else _calibrated)(source, file_type, output, how, choices, dry_run=dry_run)
    if card is None:  # another rank writes and speaks
        return
    if as_json:
        print_json(card.to_object())
    else:
        sys.stdout.write(_summary(card, model, output))


def _plainly(model: Model, name: str, output: Path, how: How, choices: Choices, *, dry_run: bool) -> Card:
    with progress_bar() as progress:
        return plainly(
            model,
            name,
            output,
            dry_run=dry_run,
            split_max_bytes=how.split_max_bytes,
            split_max_tensors=how.split_max_tensors,
            threads=how.threads,
            command=how.command,
            progress=progress,
            **choices,
        )


def _calibrated(model: Model, name: str, output: Path, how: How, choices: Choices, *, dry_run: bool) -> Card | None:
    del dry_run  # nothing is calibrated for one

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    with progress_bar(unit="weights") as progress:
        return quantize_calibrated(model, name, output, replace(how, progress=progress, tell=tell), **choices)


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


def _command(arguments: list[str], model: str, output: Path) -> str:
    """What was typed, folders cut off: the Card may be published."""
    source = Path(model).name if Path(model).exists() else model

    def public(word: str) -> str:
        for option in ("--output=", "-o", ""):
            if word.startswith(option) and len(word) > len(option) and Path(word.removeprefix(option)) == output:
                return option + output.name
        return source if word == model else word

    return shlex.join(["tersor", *map(public, arguments)])


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
