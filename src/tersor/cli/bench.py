"""`tersor bench`: how fast an artefact runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.evaluate import EXIT_CODES
from tersor.cli.options.numbers import whole_numbers
from tersor.cli.screen.benchmarks import (
    SCALES,
    machine_line,
    print_engines,
    print_kernels,
    print_model,
    print_nets,
    roof_line,
    shown,
)
from tersor.cli.screen.output import JsonOption, console, print_json, refuse_given, table
from tersor.cli.screen.progress import progress_bar
from tersor.cli.screen.published import published_command
from tersor.core.errors import SchemeError
from tersor.core.evaluation import Benchmark, Metric
from tersor.core.records import plain
from tersor.evaluation.nets.running.race import Sizes
from tersor.pages import outcome_of
from tersor.pipeline import bench as pipeline
from tersor.pipeline.nets.benching import NetBench, net_kernels

__all__ = ["bench"]

_LANGUAGE = ("prompt", "generate", "batches", "min_tokens_per_s", "save", "device", "kernels")
_NET = ("engine", "batch", "length")
"""Options that mean nothing for the other kind."""
_JUDGED = ("min_tokens_per_s", "max_latency_ratio", "batches", "save")
"""Options that mean nothing for times of kernels, which are neither judged nor kept."""


def bench(
    context: typer.Context,
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT", help="A GGUF (run in llama.cpp), a model folder (transformers), or an ONNX net."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="ARTEFACT", help="Another one, or a Hugging Face id: both run in turn, A B A B."),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Threads of the engines; 0: as optimize chose, or all physical cores."),
    ] = 0,
    prompt: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of the prompt.")] = 256,
    generate: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to generate in each round.")] = 64,
    batches: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of parallel sequences to measure throughput of.")
    ] = "1,2,4,8",
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rounds that count; fewer than 6 give no intervals.")
    ] = 9,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option(metavar="X", help="Fail if the median time per token exceeds X times that of --against."),
    ] = None,
    min_tokens_per_s: Annotated[
        float | None, typer.Option(metavar="X", help="Fail if fewer than X tokens a second are generated.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Folders: where torch computes, such as cuda; a GGUF stays on the CPU.")
    ] = "cpu",
    kernels: Annotated[
        str,
        typer.Option(
            metavar="auto|tersor|torch",
            help="Quantized folders: tersor's own (CPU) or torch's operators; auto: tersor's where they run.",
        ),
    ] = "auto",
    compare: Annotated[
        str | None, typer.Option(metavar="engines", help="Run it in every engine that can, in turn.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Nets: onnxruntime, openvino or torch; default: as optimize chose, or the first."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Nets: size of a free first axis of inputs.")] = 1,
    length: Annotated[int, typer.Option(min=1, metavar="N", help="Nets: size of other free axes of inputs.")] = 128,
    roof: Annotated[
        bool,
        typer.Option(
            "--roof", help="Time and share of the roof of every kernel of a net, or of a whole language model."
        ),
    ] = False,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Add the result to the Card beside the artefact, if there is one.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure speed, memory and energy of an artefact, each rate also as a share of what this machine could do.

    First the roofs: read bandwidth and arithmetic rate. Then rounds of a prompt, its continuation and continuations of
    several sequences at once, in turn with those of --against. Shown are medians with 95 % intervals, and ratios of
    paired rounds. Nets are timed on inputs drawn at random. Exit code 1 if a limit is broken, 3 if the interval holds
    the limit.
    """
    is_net = Path(artefact).suffix == ".onnx"
    refuse_given(context, *((_LANGUAGE, "a net") if is_net else (_NET, "a language model")))
    if compare not in (None, "engines"):
        raise SchemeError(f"--compare takes the word engines, got {compare!r}")
    if roof:
        if against is not None or compare is not None:
            raise SchemeError("--roof looks at one artefact in one engine: leave out --against and --compare")
        if device != "cpu":
            raise SchemeError(f"--roof knows the roofs of the processor, not those of {device}: leave out --device")
        refuse_given(context, _JUDGED, "--roof")
        if is_net:
            refuse_given(context, ("rounds",), "--roof of a net")
            _roof(Path(artefact), NetBench(engine, threads=threads, sizes=Sizes(batch, length)), as_json)
        else:
            asked = {"threads": threads, "prompt": prompt, "generate": generate, "rounds": rounds}
            _model_roof(artefact, asked, kernels, as_json)
        return
    if compare:
        refuse_given(context, ("save",), "--compare")
    with progress_bar(unit="weights") as progress:
        found = pipeline.bench(
            artefact,
            against=against,
            compare=compare is not None,
            engine=engine,
            batch=batch,
            length=length,
            threads=threads,
            prompt=prompt,
            generate=generate,
            batches=whole_numbers(batches, "--batches"),
            rounds=rounds,
            device=device,
            kernels=kernels,
            save=save,
            max_latency_ratio=max_latency_ratio,
            min_tokens_per_s=min_tokens_per_s,
            command=published_command(context),
            progress=progress,
        )
    outcome = outcome_of(found[0].limits)
    if as_json:
        print_json({"outcome": outcome, "benchmarks": plain(found)})
    else:
        show = print_engines if compare else print_nets if is_net else _print
        show(console(), found)
    code = EXIT_CODES[outcome]
    if code:
        raise typer.Exit(code)


def _roof(path: Path, how: NetBench, as_json: bool) -> None:
    """Time every kernel of a net and hold it against the roof."""
    kernels, scene, way = net_kernels(path, how)
    if as_json:
        print_json({"machine": scene.facts(), "engine": str(way), "kernels": plain(kernels)})
        return
    screen = console()
    screen.print(roof_line(scene))
    screen.print(f"{path.name} in {way}\n")
    print_kernels(screen, kernels)


def _model_roof(artefact: str, asked: Mapping[str, int], kernels: str, as_json: bool) -> None:
    """Hold a whole language model against the roof."""
    with progress_bar(unit="items") as progress:
        found, scene, engine = pipeline.model_roof(artefact, **asked, kernels=kernels, progress=progress)
    if as_json:
        print_json({"machine": scene.facts(), "engine": engine, "kernels": plain(found)})
        return
    screen = console()
    screen.print(roof_line(scene))
    screen.print(f"{Path(artefact).name} in {engine}\n")
    print_model(screen, found)


def _print(screen: Console, found: Sequence[Benchmark]) -> None:
    subject = found[0]
    screen.print(machine_line(subject))
    for name, one in zip("AB", found, strict=False):
        screen.print(f"{name}  {one.subject}, {one.engine}")
    screen.print(
        f"{subject.settings['rounds']} rounds of {_round(subject)}: medians, 95 % intervals, shares of the roof\n"
    )
    rows = table("what", *(f">{name}" for name in "AB"[: len(found)]), *([">A / B"] if subject.ratios else []))
    ratios = {metric.name: metric for metric in subject.ratios}
    for metric in subject.metrics:
        cells = [shown(one.metric(metric.name)) for one in found]
        rows.add_row(_label(metric), *cells, *([shown(ratios.get(metric.name))] if ratios else []))
        shares = [one.metric(metric.name) for one in found]
        if any(share is not None and share.share is not None for share in shares):
            rows.add_row("  share of the roof", *map(_share, shares), *([""] if ratios else []))
    screen.print(rows)
    screen.print()
    for note in dict.fromkeys(note for one in found for note in one.notes):
        screen.print(f"note: {note}")
    for limit in subject.limits:
        screen.print(f"{limit.outcome}: {limit.reason}")


def _round(one: Benchmark) -> str:
    return f"{one.settings['prompt_tokens']} prompt and {one.settings['generated_tokens']} generated tokens"


def _label(metric: Metric) -> str:
    """The name without its unit, and the unit it is shown in."""
    unit = SCALES.get(metric.unit, (1, metric.unit))[1]
    stem = metric.name.replace("throughput_", "")
    for suffix in ("_tokens_per_s", "_joules_per_token", "_bytes", "_ms", "_s"):
        stem = stem.removesuffix(suffix)
    return f"{stem.replace('_', ' ')}, {unit}"


def _share(metric: Metric | None) -> str:
    return "–" if metric is None or metric.share is None else f"{metric.share:.1%}"
