"""`tersor plan`: which format each tensor should have."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.calibrate.text import BUILT_IN
from tersor.cli.options.images import MeanOption, StdOption, preparation_of
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
    TensorFormatOption,
    ThreadsOption,
)
from tersor.cli.options.nets import ActivationsOption, DataOption, EngineOption, NetSizeOption, WeightsOption
from tersor.cli.options.planning import (
    FormatsOption,
    HolderOption,
    PlannedMethodOption,
    StatisticsOption,
    TargetOption,
    listed,
    study_of,
)
from tersor.cli.quantize import parse_size
from tersor.cli.screen.analysis import explanation, named, plan_summary, show_curve
from tersor.cli.screen.net_plans import NetPlanArguments, plan_net_command
from tersor.cli.screen.output import JsonOption, is_given, print_json, refuse_given
from tersor.cli.screen.progress import progress_bar
from tersor.core.errors import MissingError, SchemeError
from tersor.core.records import plain
from tersor.files.atomic import check_folder
from tersor.models import Model, load
from tersor.pipeline.nets.quantizing import is_network
from tersor.pipeline.planning.analysing import ANALYSIS, Studied, Study, analyse, open_study
from tersor.pipeline.planning.goals import PlanGoal, read_rate
from tersor.pipeline.planning.measuring import measure_plan
from tersor.pipeline.planning.planning import TRIALS, Planned, Planner, shares_of
from tersor.pipeline.planning.sweep import parse_sweep, sweep
from tersor.pipeline.planning.targets import Target, target_named

__all__ = ["plan"]

OF_LANGUAGE = (
    *("max_kl", "max_perplexity_increase", "memory", "context_tokens", "bandwidth", "measure", "container", "method"),
    *("calibration_sequences", "calibration_length", "calibration_field", "calibration_chunk", "seed", "statistics"),
    "ignore_config",
)
"""Parameters that mean nothing for a net."""
OF_NETS = ("data", "weights", "max_drop", "engine", "kind", "mean", "std", "size_of")
"""Parameters that mean nothing for a language model."""
GOALS = ("max_size", "bits_per_weight", "max_kl", "max_perplexity_increase", "max_latency_ms", "max_drop", "memory")
"""Parameters that ask for one plan."""
TOLD_AGAIN = (
    *(*OF_TEXT, "calibration_chunk", "statistics", "ignore_config"),
    *("weights", "data", "mean", "std", "size_of"),
)
"""Parameters that `tersor quantize --plan` takes too: what a plan was made on does not stand in it."""
OF_STUDY = ("formats", "container", "method", "statistics", *OF_TEXT)
"""Parameters that shape an analysis: it has them already where one is given."""


def plan(
    context: typer.Context,
    model: ModelArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The plan to write, or the page of a --sweep.")
    ] = None,
    target: TargetOption = "cpu",
    max_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Largest file, such as 4GiB.")] = None,
    bits_per_weight: Annotated[
        float | None, typer.Option(metavar="N", help="Most bits per weight, over the whole model.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(metavar="NATS", help="Largest divergence from full precision, per token.")
    ] = None,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Largest rise of the perplexity.")
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Longest time in which the weights are read once: no token takes less. Of a net: of one call.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Nets: percentage points of accuracy that may be lost on --data; without it, of agreement with the "
            "float net on the calibration data. The smallest net that keeps it.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory for weights, --context tokens and logits.")
    ] = None,
    context_tokens: Annotated[
        int, typer.Option("--context", min=1, metavar="N", help="Tokens whose keys and values --memory holds.")
    ] = 4096,
    bandwidth: Annotated[
        float | None,
        typer.Option(metavar="GB/S", help="How fast the target reads memory; left out: this machine is measured."),
    ] = None,
    sweep_range: Annotated[
        str | None,
        typer.Option("--sweep", metavar="FROM:TO", help="The trade-off curve between two sizes, bits per weight."),
    ] = None,
    explain: Annotated[str | None, typer.Option(metavar="LAYER", help="Say why this tensor gets its format.")] = None,
    analysis: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="What tersor analyse has saved; left out: made beside OUT, and kept. Where there is none yet, "
            "--calibration makes it there.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Quantize by the plan and measure: minutes, and better predictions.")
    ] = False,
    trials: Annotated[
        int, typer.Option(min=0, metavar="N", help="Neighbours of the best mix that are measured beside it.")
    ] = TRIALS,
    tensor_format: TensorFormatOption = None,
    formats: FormatsOption = None,
    container: HolderOption = "gguf",
    method: PlannedMethodOption = "best",
    calibration: CalibrationOption = None,
    calibration_sequences: SequencesOption = 128,
    calibration_length: LengthOption = None,
    calibration_field: FieldOption = None,
    calibration_chunk: ChunkOption = 4,
    seed: SeedOption = 0,
    statistics: StatisticsOption = None,
    threads: ThreadsOption = 0,
    ignore_config: IgnoreConfigOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    kind: ActivationsOption = None,
    engine: EngineOption = "onnxruntime",
    mean: MeanOption = "0,0,0",
    std: StdOption = "1,1,1",
    size_of: NetSizeOption = "",
    as_json: JsonOption = False,
) -> None:
    """Choose a format for every tensor of a language model, or operator of a net: the least divergence for a size, or
    the least size for one.

    The plan is YAML to be read, edited and committed; tersor quantize --plan takes it. Tensors are protected by what
    rounding them was measured to cost, not by their names; --explain shows the figures.

    \b
    Example:
      tersor plan org/name --target cpu --bits-per-weight 3.5 -o plan.yaml --calibration my-text/
      tersor quantize org/name -o name.gguf --plan plan.yaml --calibration my-text/
      tersor plan org/name --analysis plan.analysis --max-kl 0.01 -o better.yaml --measure
      tersor plan org/name --analysis plan.analysis --bits-per-weight 3.5 --explain blk.0.ffn_down
      tersor plan org/name --analysis plan.analysis --sweep 2.5:8 -o curve.html
      tersor plan net.onnx --calibration images/ --data labelled/ --max-drop 0.5 -o plan.yaml
      tersor quantize net.onnx -o small.onnx --plan plan.yaml --calibration images/
    """
    _check_given(context, is_swept=sweep_range is not None, as_json=as_json)
    kinds, fixed = listed(formats), tuple(tensor_format or ())
    limits: dict[str, Any] = {"bits_per_weight": bits_per_weight, "max_latency_ms": max_latency_ms}
    if is_network(model):
        refuse_given(context, OF_LANGUAGE, "a net")
        images = preparation_of(mean, std, size_of)
        given = NetPlanArguments(calibration, weights, data, engine, images, kind, threads, target, trials)
        limits |= {"max_bytes": None if max_size is None else parse_size(max_size), "max_drop": max_drop}
        given = replace(given, formats=kinds, fixed=fixed, sweep=sweep_range, explain=explain)
        place, tell = analysis or _beside(output), None if analysis is None else _tell
        plan_net_command(
            model, output, given, limits, saved=place, again=_repeated(context), tell=tell, as_json=as_json
        )
        return
    refuse_given(context, OF_NETS, "a language model")
    row = target_named(target, kinds, container)
    limits |= _limits(row, max_size, memory, bandwidth, is_timed=max_latency_ms is not None)
    limits |= {"max_kl": max_kl, "max_perplexity_increase": max_perplexity_increase, "context": context_tokens}
    goal, sizes = (PlanGoal(**limits), []) if sweep_range is None else (None, parse_sweep(sweep_range))
    saved = _saved(context, analysis)
    source = load(model, ignore_config=ignore_config or ())
    if saved is not None:
        studied = open_study(source, saved)
    else:
        cut = calibration, calibration_sequences, calibration_length, calibration_field, seed, calibration_chunk
        study = study_of(target, formats, method, cut, statistics, container=container, threads=threads)
        studied = _analysed(source, analysis or _beside(output), study)
    with progress_bar(unit="weights") as progress:
        planner = Planner(source, studied, target, fixed, row.allowed, progress)
        if goal is None:
            rate = limits["bandwidth"] or (read_rate() if row.is_here else None)
            curve = sweep(planner, sizes, is_measured=measure, rate=rate)
        else:
            planned = planner.plan(goal, trials=trials)
    if goal is None:
        show_curve(source.name, curve, output, as_json=as_json)
        return
    planned = _measured(planner, planned, threads) if measure else planned
    again = _repeated(context, without="TEXT" if saved is not None else BUILT_IN)
    _show(planner, planned, (model, output), again, explain=explain, as_json=as_json)


def _show(
    planner: Planner,
    planned: Planned,
    names: tuple[str, Path | None],
    again: list[str],
    *,
    explain: str | None,
    as_json: bool,
) -> None:
    """Save the plan, and tell of it; `names`: the model as it was typed, and where the plan goes."""
    model, output = names
    if output is not None:
        planned.file.save(output, shares_of(planner.analysis, planned.mix))
    if as_json:
        print_json(plain({**plain(planned.file), "tried": planned.tried, "moved": planned.was_moved}))
        return
    sys.stdout.write(_told(planner, planned, model, output, again))
    if explain is not None:
        sys.stdout.write(explanation(planner.analysis, planned.mix, named(planner.analysis, explain)))


def _check_given(context: typer.Context, *, is_swept: bool, as_json: bool) -> None:
    """Refuse what lacks a place, and what nothing would be shown of."""
    if not is_given(context, "output") and not is_given(context, "analysis"):
        raise SchemeError("give --output for the plan, or --analysis to look at a saved one")
    if is_swept:
        refuse_given(context, (*GOALS, "explain", "trials"), "--sweep, which shows what every size costs")
    if as_json and is_given(context, "explain"):
        raise SchemeError("--explain tells a person: leave --json out, whose figures stand in the saved analysis")


def _measured(planner: Planner, planned: Planned, threads: int) -> Planned:
    with progress_bar(unit="weights") as progress:
        return measure_plan(planner.model, planner.studied, planned, threads=threads, progress=progress)[0]


def _limits(
    row: Target, max_size: str | None, memory: str | None, bandwidth: float | None, *, is_timed: bool
) -> dict[str, Any]:
    """Return limits as PlanGoal takes them: what is not said is what the target is known to have."""
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise SchemeError(f"--bandwidth {bandwidth:g}: GB/s above 0")
    rate = row.read_bytes_per_s if bandwidth is None else bandwidth * 1e9
    if rate is None and not row.is_here and is_timed:
        raise SchemeError(
            f"how fast {row.name} reads its memory is not known: give --bandwidth, or a machine as --target"
        )
    return {
        "max_bytes": None if max_size is None else parse_size(max_size),
        "memory_bytes": row.memory_bytes if memory is None else parse_size(memory),
        "bandwidth": rate,
    }


def _beside(output: Path | None) -> Path:
    assert output is not None, "checked before"
    return output.with_suffix(".analysis")


def _saved(context: typer.Context, analysis: Path | None) -> Path | None:
    """Return where the analysis lies that is taken; None: one is made, beside the plan or where it was asked for.

    What was typed of the text or of formats says which is meant; MissingError where nothing was and nothing is there.
    """
    if analysis is not None:
        check_folder(analysis)
        if (analysis / ANALYSIS).is_file():
            refuse_given(context, OF_STUDY, "a saved analysis")
            return analysis
    if is_given(context, "statistics"):
        refuse_given(context, OF_TEXT, "saved statistics")
    if analysis is None:
        return None
    found = "holds no finished analysis" if analysis.is_dir() else "no such analysis"
    if not any(is_given(context, name) for name in OF_STUDY):
        raise MissingError(f"{analysis}: {found}; is the name right? With --calibration, one is made there")
    _tell(f"{analysis}: {found}; one is made now, and kept there")
    return None


def _analysed(model: Model, folder: Path, study: Study) -> Studied:
    with progress_bar(unit="weights") as progress:
        return analyse(model, folder, study, progress=progress, tell=_tell)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _repeated(context: typer.Context, without: str = "DATA") -> list[str]:
    """Return the options that `tersor quantize` needs as well, as they were typed here.

    without  what to calibrate on where nothing was typed
    """
    words = []
    for option in context.command.params:
        name = str(option.name)
        if name in TOLD_AGAIN and is_given(context, name):
            given = context.params[name]
            words += [w for one in (given if isinstance(given, list) else [given]) for w in (option.opts[0], str(one))]
    if not is_given(context, "calibration") and not is_given(context, "statistics"):
        words += ["--calibration", without]
    return words


def _told(planner: Planner, planned: Planned, model: str, output: Path | None, again: Sequence[str]) -> str:
    text = plan_summary(planner.analysis, planned.mix, dict(planned.file.predicted), dict(planned.file.measured))
    if planned.tried:
        moved = "one was better beyond the noise and taken" if planned.was_moved else "none was better beyond the noise"
        text += f"{planned.tried} neighbours were measured beside it: {moved}\n"
    if output is not None:
        command = ["tersor", "quantize", model, "-o", planned.file.example, "--plan", str(output), *again]
        text += f"wrote {output}\nnext  {shlex.join(command)}\n"
    return text
