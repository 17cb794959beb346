"""From a net, data and a goal to a plan: which operators become integers, of how many bits, and which stay in float."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tersor.analyse.analysis import Analysis
from tersor.core.errors import SchemeError, ShapeError
from tersor.evaluation.statistics import Interval
from tersor.files.atomic import atomic_writer, check_folder
from tersor.graph.net import Net
from tersor.graph.observe import batches_of
from tersor.graph.sensitivity.rebuild import FORMATS, roundings_of
from tersor.graph.sessions import Feeds, digest, one
from tersor.pipeline.nets.data import calibration_batches, fitting
from tersor.pipeline.nets.judge import Judge
from tersor.pipeline.nets.mixing.costs import Operators, analyse_net, method_of, operators_of
from tersor.pipeline.nets.mixing.divergence import Yardstick
from tersor.pipeline.nets.mixing.goals import NetGoal
from tersor.pipeline.nets.mixing.planner import NetPlanner
from tersor.pipeline.nets.mixing.speed import Clock
from tersor.pipeline.nets.quantizing import NetHow, described, few, open_source, recipe_of, with_data
from tersor.pipeline.planning.sweep import Curve, CurveRow
from tersor.targets.estimating.machine import Machine, of_profile, of_roofs
from tersor.targets.profiles.table import profile
from tersor.targets.roofs import measure_roofs

__all__ = ["HERE", "open_net_planner", "sweep_net"]

HERE = "cpu"
"""The target that stands for this machine."""
ANALYSIS = "analysis.json"
WHOLE = 8
"""Bits of weights where nothing else is asked for."""
MEASURED_ITEMS = 1024
"""On which plans are compared, at most."""


def open_net_planner(
    net: Any,
    how: NetHow,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    target: str = HERE,
    needs_speed: bool = False,
    fixed: Sequence[str] = (),
    saved: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> NetPlanner:
    """Measure what each of `formats` costs each operator of `net`, and return what makes plans of it.

    net          what `quantize_network` takes
    how          calibration, labelled data and the like; without data, costs are measured on what calibrates
    target       "cpu": this machine, or a profile (`tersor estimate --list`)
    needs_speed  whether a goal will ask for it; that of this machine is measured
    fixed        "PATTERN=FORMAT": operators that have no choice
    saved        folder that keeps the costs: those of the same net, data and formats are taken from it
    tell         is told when none can be taken from `saved`, and all are measured
    Raises SchemeError for formats, targets and patterns that are none, and what `quantize_network` raises.
    """
    wanted = _formats(formats)
    if target != HERE:
        profile(target)  # says what there is
    if saved is not None:
        check_folder(saved)
    labelled, how = how.data, with_data(how)
    source, files = open_source(net, how)
    how = replace(how, data=fitting(how.data, source))
    data = calibration_batches(how.calibration, source, how.preparation, images=how.images)
    batches = batches_of(source, data, how.limit)
    widths = {bits for kind in wanted if (bits := FORMATS[kind]) is not None} or {WHOLE}
    recipe = recipe_of(how, f"int{WHOLE}")
    roundings = roundings_of(source, batches, recipe, widths, threads=how.threads, progress=how.progress)
    operators = operators_of(roundings, wanted)
    sources = files or {source.name: hashlib.sha256(source.to_bytes()).hexdigest()}
    plain = roundings.finest.source
    judged = _held(how, plain, batches)
    told = f"{described(how, batches)}, sha256 {digest(batches)}"
    if labelled is not None:
        told += f"; measured on {described(replace(how, calibration=labelled), judged)}, sha256 {digest(judged)}"
    about: dict[str, Any] = {"sources": sources, "calibration": told}
    analysis = _kept_analysis(operators, about, saved)
    if analysis is None:
        if saved is not None and tell is not None:
            what = "the analysis is of another net, data or formats" if (saved / ANALYSIS).is_file() else "no analysis"
            tell(f"{saved}: {what}; a new one is made and kept there")
        yardstick = Yardstick.open(plain, few(judged), threads=how.threads)
        analysis = analyse_net(operators, yardstick, net=source, progress=how.progress, **about)
        if saved is not None:
            _keep(analysis, saved)
    clock = None
    if needs_speed:
        clock = Clock(operators, _machine(target), one(plain, batches[0]), target == HERE, how.threads)
    held = Yardstick.open(plain, judged, threads=how.threads)
    judge = _judge(how, plain, batches)
    return NetPlanner(operators, analysis, held, judge, clock, target, tuple(fixed))


def sweep_net(planner: NetPlanner, sizes: Sequence[float]) -> Curve:
    """Return the trade-off curve at `sizes`, bits per weight; those that no mix has are left out, SchemeError if all
    are. Every net is made and measured.
    """
    rows: dict[int, CurveRow] = {}
    for bits in sizes:
        try:
            planned = planner.plan(NetGoal(bits_per_weight=bits), trials=0)
        except SchemeError:
            continue  # smaller than the smallest mix
        told, found = planned.file.predicted, planned.file.measured
        low, high = found.get("kl_low", -math.inf), found.get("kl_high", math.inf)
        measured = Interval(found["kl"], low, high, planner.yardstick.items)
        rows[planned.mix.nbytes] = CurveRow(
            told["bits_per_weight"],
            int(found["file_bytes"]),
            told["kl"],
            measured,
            None,
            dict(planned.file.formats),
            found.get("drop_points"),
        )
    if not rows:
        raise SchemeError(f"no mix has {sizes[0]:g} to {sizes[-1]:g} bits per weight: its formats are larger")
    return Curve(tuple(rows.values()))


def _formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return formats by rising size."""
    odd = [kind for kind in formats if kind not in FORMATS]
    if odd or not formats:
        raise SchemeError(f"an operator of a net is planned as {', '.join(FORMATS)}, not {', '.join(odd) or 'nothing'}")
    return tuple(kind for kind in FORMATS if kind in formats)


def _machine(target: str) -> Machine:
    return of_roofs(measure_roofs(1)) if target == HERE else of_profile(profile(target))


def _kept_analysis(operators: Operators, about: Mapping[str, Any], saved: Path | None) -> Analysis | None:
    """Return the costs that are saved, where they are of the same; else None."""
    if saved is None or not (saved / ANALYSIS).is_file():
        return None
    found = Analysis.load(saved / ANALYSIS)
    kept = {tensor.name: tuple(each.format for each in tensor.candidates) for tensor in found.tensors}
    formats = {name: choice.formats for name, choice in operators.choices.items()}
    wanted = {**about, "method": method_of(operators.roundings.finest)}
    is_same = kept == formats and all(getattr(found, key) == value for key, value in wanted.items())
    return found if is_same else None


def _keep(analysis: Analysis, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with atomic_writer(folder / ANALYSIS) as file:
        file.write(analysis.to_json().encode())


def _held(how: NetHow, net: Net, batches: Sequence[Feeds]) -> list[Feeds]:
    """Return what plans are compared on: inputs of the labelled data, or what calibrates."""
    if how.data is None:
        return few(batches, MEASURED_ITEMS)
    return few(batches_of(net, how.data), MEASURED_ITEMS)


def _judge(how: NetHow, net: Net, batches: Sequence[Feeds]) -> Judge | None:
    if how.data is not None:
        return Judge.open(net, how.data, labelled=True)
    try:
        return Judge.open(net, batches, labelled=False)
    except ShapeError:
        return None  # no classes: there is no accuracy to lose
