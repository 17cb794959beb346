"""The half of `tersor plan` that is for nets with activations: its call, and what it prints."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.cli.screen.analysis import explanation, named, protected, show_curve
from tersor.cli.screen.output import print_json
from tersor.cli.screen.progress import progress_bar
from tersor.core.errors import SchemeError
from tersor.core.quantities import number, size
from tersor.core.records import plain
from tersor.evaluation.nets.images import Preparation
from tersor.graph.sensitivity.rebuild import FORMATS
from tersor.pipeline.nets.mixing.goals import NetGoal
from tersor.pipeline.nets.mixing.planner import TRIALS, NetPlanned, NetPlanner
from tersor.pipeline.nets.planning import open_net_planner, sweep_net
from tersor.pipeline.nets.quantizing import NetHow
from tersor.pipeline.planning.planning import shares_of
from tersor.pipeline.planning.sweep import parse_sweep

__all__ = ["NetPlanArguments", "plan_net_command"]


@dataclass(frozen=True, slots=True)
class NetPlanArguments:
    """What was typed."""

    calibration: str | None
    weights: Path | None
    data: Path | None
    engine: str
    preparation: Preparation
    activations: str | None = None
    threads: int = 0
    target: str = "cpu"
    trials: int = TRIALS
    formats: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    sweep: str | None = None
    explain: str | None = None


def plan_net_command(
    model: str,
    output: Path | None,
    given: NetPlanArguments,
    limits: Mapping[str, Any],
    *,
    saved: Path,
    again: Sequence[str],
    tell: Callable[[str], None] | None,
    as_json: bool,
) -> None:
    """Plan a net, write the plan, and tell what it costs.

    limits  as NetGoal takes them
    saved   folder that keeps what formats cost
    again   options that `tersor quantize --plan` needs as well
    tell    is told where nothing of use lies there
    """
    goal = None if given.sweep is not None else NetGoal(**limits)
    sizes = parse_sweep(given.sweep) if given.sweep is not None else []
    if given.calibration is None:
        raise SchemeError(
            "a net needs data to be measured on: --calibration with a folder of images, an .npz, or "
            "package.module:function that returns batches"
        )
    with progress_bar(unit="items") as progress:
        how = NetHow(
            calibration=given.calibration,
            weights=given.weights,
            target=given.engine,
            activations=given.activations,
            data=given.data,
            preparation=given.preparation,
            threads=given.threads,
            progress=progress,
        )
        planner = open_net_planner(
            model,
            how,
            formats=given.formats or tuple(FORMATS),
            target=given.target,
            needs_speed=goal is not None and goal.max_latency_ms is not None,
            fixed=given.fixed,
            saved=saved,
            tell=tell,
        )
    if goal is None:
        show_curve(planner.analysis.model, sweep_net(planner, sizes), output, as_json=as_json)
        return
    planned = planner.plan(goal, trials=given.trials)
    if output is not None:
        planned.file.save(output, shares_of(planner.analysis, planned.mix))
    if as_json:
        print_json(plain({**plain(planned.file), "tried": planned.tried}))
        return
    sys.stdout.write(_told(planner, planned, model, output, again))
    if given.explain is not None:
        sys.stdout.write(explanation(planner.analysis, planned.mix, named(planner.analysis, given.explain)))


def _told(planner: NetPlanner, planned: NetPlanned, model: str, output: Path | None, again: Sequence[str]) -> str:
    told, found = planned.file.predicted, planned.file.measured
    kinds = Counter(planned.file.formats.values())
    lines = [
        f"{planner.analysis.model}: {told['bits_per_weight']:.4g} bits per weight, {size(int(found['file_bytes']))}",
        f"divergence of {number(told['kl'], 3)} nats predicted, {number(found['kl'], 3)} measured",
    ]
    if "drop_points" in found:
        what = "of accuracy" if planner.judge is not None and planner.judge.is_labelled else "of agreement with float"
        lines.append(f"{found['drop_points']:.2f} points {what} lost, on {planner.judge.items if planner.judge else 0}")
    if "latency_ms" in told:
        measured = f", {number(found['latency_ms'], 3)} measured" if "latency_ms" in found else ""
        lines.append(f"a call in {number(told['latency_ms'], 3)} ms predicted{measured}")
    lines.append(f"operators: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
    lines += protected(planner.analysis, planned.mix)
    if output is not None:
        words = ["tersor", "quantize", model, "-o", planned.file.example, "--plan", str(output), *again]
        lines += [f"wrote {output}", f"next  {shlex.join(words)}"]
    return "\n".join(lines) + "\n"
