"""`tersor advise` as one call: which way to make a model small meets a goal, with every rung's result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from tersor.calibrate.workspace import Workspace, workspace_path
from tersor.containers.hf.writer import check_output
from tersor.core.card import card_path
from tersor.core.errors import MissingError, SchemeError
from tersor.files.atomic import atomic_writer, check_file, replace_folder
from tersor.models import Model, load
from tersor.pipeline.advising.ladder import Advice, Finding, Goal, Rung, walk
from tersor.pipeline.advising.language import Task, rungs_of_language
from tersor.pipeline.advising.nets import NetTask, rungs_of_net
from tersor.pipeline.advising.rendering import FORMS, written
from tersor.pipeline.nets.quantizing import NetHow, is_network
from tersor.pipeline.quantize import check_name
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.cards import load_card, save_card

__all__ = ["TARGETS", "advise", "check_report", "save_report"]

TARGETS = ("cpu", "gpu")
"""Where it is to run: processors (GGUF in llama.cpp, ONNX), or GPUs (compressed-tensors in vLLM and others)."""

UNNAMED = "no file: "
UNTOLD = ("model", "command", "progress", "threads")
"""Options that change nothing of what is found, and the model, which is told by itself."""


def advise(
    model: str | Path | Model | Any,
    goal: Goal,
    *,
    output: Path | None = None,
    target: str = "cpu",
    how: NetHow | None = None,
    language: Callable[[Model], Task] | None = None,
    resume: bool = False,
    tell: Callable[[Finding], None] = lambda _finding: None,
) -> Advice:
    """Walk the ladder for `model` until `goal` is met, and return what was found.

    output    the artefact that meets it is put there, with its Card; None: nothing is kept
    target    "cpu" or "gpu"; nets have a ladder for processors alone
    how       for nets: calibration, data to judge by, training
    language  for language models: given the model, returns calibration text, text to judge by and more
    resume    go on with the rungs that a walk for the same `output` had finished when it was ended
    tell      is told what became of each rung

    Raises SchemeError for a goal or a target that do not fit, and what loading and quantizing raise.
    """
    if target not in TARGETS:
        raise SchemeError(f"the target is {' or '.join(TARGETS)}, not {target!r:.40}")
    if target == "gpu" and is_network(model):
        raise SchemeError("the ladder of nets is one for processors, in ONNX Runtime: leave the target out")
    if resume and output is None:
        raise SchemeError("unfinished work lies beside the output: say which one to go on with")
    task, rungs = _ladder(model, goal, target, how, language)
    if output is not None:
        _check_output(output, _files(model) if isinstance(task, NetTask) else task.model.files, task)
    name = task.source.name if isinstance(task, NetTask) else task.model.name
    if output is None:
        with tempfile.TemporaryDirectory(prefix="tersor-advise-") as made:
            return walk(name, rungs, goal, Path(made), clock=time.monotonic, tell=tell)
    described = _described(task, rungs, goal)
    if resume and UNNAMED in json.dumps(described):
        raise SchemeError("data that is no file has no name to know it by: such a walk cannot be gone on with")
    work = Workspace(workspace_path(output), described, resume=resume)
    advice = walk(name, rungs, goal, work.folder, clock=time.monotonic, tell=tell)
    if advice.chosen is not None and advice.chosen.made is not None:
        _keep(work.folder / advice.chosen.made.name, output)
    work.remove()
    return advice


def _files(net: Any) -> Iterable[Path]:
    return [Path(net)] if isinstance(net, (str, Path)) else []


def _check_output(output: Path, sources: Iterable[Path], task: Task | NetTask) -> None:
    """Refuse before the walk what would replace the model itself, or what is no artefact of that kind."""
    if not output.parent.is_dir():
        raise MissingError(f"{output.parent}: no such folder; create it first, or give another output")
    made, is_folder = output.resolve(), isinstance(task, Task) and task.is_gpu
    if any(made in (source.resolve(), *source.resolve().parents) for source in sources):
        raise SchemeError(f"{output}: is the model itself, or holds it; give another output")
    if output.is_dir() != is_folder and os.path.lexists(output):
        raise SchemeError(f"{output} is there already, and of another kind than what is made")
    if is_folder and isinstance(task, Task):
        check_output(task.model.files[0].parent, output)
    else:
        if isinstance(task, Task):
            check_name(output)
        check_file(output, sources)


def _described(task: Task | NetTask, rungs: Sequence[Rung], goal: Goal) -> dict[str, Any]:
    """What shapes the artefacts and what is measured of them, as far as it has a name."""
    # A mix takes all of the size, and operators go back to float until no more is lost than that.
    is_net = isinstance(task, NetTask)
    shaping = {"goal": goal.most_loss if is_net else goal.most_bytes, "needs_speed": task.needs_speed}
    given = _told(task.how if isinstance(task, NetTask) else task)
    about = {"rungs": [rung.name for rung in rungs], "versions": provenance.versions()}
    if isinstance(task, NetTask):
        model: object = hashlib.sha256(task.source.to_bytes()).hexdigest()
    else:
        model = [_of_file(path, path.name) for path in task.model.files]
    return {**given, **shaping, **about, "model": model}


def _told(given: Any) -> Any:
    """An option, and those within it, as JSON has them; files by name, size and time."""
    if is_dataclass(given) and not isinstance(given, type):
        return {one.name: _told(getattr(given, one.name)) for one in fields(given) if one.name not in UNTOLD}
    if given is None or isinstance(given, bool | int | float):
        return given
    if isinstance(given, list | tuple):
        return [_told(one) for one in given]
    return _state(given)


def _state(given: Any) -> list[Any]:
    """Which files these are, and of when; a name that is no file as it is, and what has no name by its kind."""
    path = Path(given) if isinstance(given, (str, Path)) and str(given) else None
    if path is None or not path.exists():
        return [str(given)] if isinstance(given, (str, Path)) else [f"{UNNAMED}{type(given).__name__}"]
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [_of_file(one, str(one.relative_to(path)) if path.is_dir() else one.name) for one in files]


def _of_file(path: Path, name: str) -> list[Any]:
    return [name, path.stat().st_size, path.stat().st_mtime_ns]


def _ladder(
    model: Any, goal: Goal, target: str, how: NetHow | None, language: Callable[[Model], Task] | None
) -> tuple[Task | NetTask, tuple[Rung, ...]]:
    needs_speed = goal.least_speed is not None
    if is_network(model):
        if how is None:
            raise SchemeError("a net needs data to calibrate with: NetHow(calibration=…)")
        task = NetTask(model, how, needs_speed=needs_speed)
        return task, rungs_of_net(task, goal)
    source = model if isinstance(model, Model) else load(model)
    given = Task(source, "builtin") if language is None else language(source)
    given = replace(given, needs_speed=needs_speed, is_gpu=target == "gpu")
    if given.is_gpu and needs_speed:
        raise SchemeError("speed on a GPU is not measured here: ask for a size, and measure with `tersor bench` there")
    return given, rungs_of_language(given, goal)


def _keep(made: Path, output: Path) -> None:
    """Put the chosen artefact and its Card where they were asked for."""
    if made.is_dir():
        replace_folder(made, output)
        return
    card = load_card(card_path(made, "json"))
    shutil.move(made, output)
    save_card(replace(card, artefacts=tuple(replace(one, name=output.name) for one in card.artefacts)), output)


def check_report(path: Path) -> None:
    """Refuse before any work a report that could not be written: its name (SchemeError) or folder (MissingError)."""
    form = path.suffix.lower()
    if form not in FORMS:
        raise SchemeError(f"{path}: a report ends in {', '.join(FORMS)}, not {form or 'nothing'!r}")
    check_file(path, (), "report.html")


def save_report(advice: Advice, path: Path) -> None:
    """Write the advice as .html, .md or .json, by the name of the file; errors are those of `check_report`."""
    check_report(path)
    with atomic_writer(path) as file:
        file.write(written(advice, path.suffix.lower()).encode())
