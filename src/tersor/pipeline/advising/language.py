"""The ladder of language models: GGUF for processors, compressed-tensors for GPUs.

Each format is rounded plainly first, for that costs nothing; then with what calibration knows. What is lost is the
mean KL divergence from full precision on text that no rung has seen, of files in llama.cpp, of folders in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.core.errors import MissingError
from tersor.core.evaluation import Metric
from tersor.evaluation.language.windows import DEFAULT_CONTEXT
from tersor.models import Model
from tersor.pipeline.advising.ladder import Goal, Rung
from tersor.pipeline.advising.made import Made
from tersor.pipeline.bench import bench
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.training import settings
from tersor.pipeline.conversion import quantize
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.planning import goals as plans
from tersor.pipeline.planning.analysing import Study, analyse
from tersor.pipeline.planning.planning import Planner
from tersor.pipeline.planning.targets import target_named

__all__ = ["Task", "rungs_of_language"]

GAINS: Mapping[str, str] = {
    "rtn": "each weight to its nearest point: no data, seconds",
    "gptq": "columns make good the errors of those before them, as calibration text has them",
    "best": "GPTQ that makes good the errors of earlier layers as well, with searched scales",
    "mixed": "a format of its own for each tensor, by what its rounding costs the model, to exactly the size",
    "qat": "the model is trained while it is rounded, taught by full precision: minutes for millions of weights",
}
"""What each method does for the quality."""
FULL = "f16"
WINDOWS = 40
REFERENCE = "reference.bin"
"""What full precision predicts of the text, computed with the first rung."""
STORED_BYTES, TOKEN_BYTES, LEAST_KEPT = 1 << 30, 8, 64
SPEED_ROUNDS = 6  # the fewest that give an interval


@dataclass(frozen=True, slots=True)
class Form:
    """A format of the ladder: its name, and the methods that are tried, cheapest first."""

    name: str
    methods: tuple[str, ...] = ("rtn", "gptq", "best")


TRAINED = ("rtn", "gptq", "best", "qat")
GGUF = (
    Form("f16", ("rtn",)), Form("q8_0", ("rtn",)), *map(Form, ("q6_k", "q5_k_m", "q4_k_m")),
    Form("q3_k_m", TRAINED), Form("q2_k", TRAINED),
)  # fmt: skip
GROUPS = (Form("int8-channel"), Form("int4-g32"), Form("int4-g128"))
"""For engines on GPUs, in compressed-tensors."""


@dataclass(frozen=True, slots=True)
class Task:
    """What all rungs share.

    calibration  text to calibrate with
    data         held-out text to judge by; None: that of the embedded model
    windows      of text at most
    needs_speed  whether the goal asks for it; it is measured beside 16 bits
    train        text to train on, beside that to calibrate with; None: more of that
    epochs       passes over it; None: as many as usual
    """

    model: Model
    calibration: str | Path
    data: Path | None = None
    windows: int = WINDOWS
    needs_speed: bool = False
    threads: int = 0
    is_gpu: bool = False
    train: str | Path | None = None
    epochs: int | None = None


def rungs_of_language(task: Task, goal: Goal) -> tuple[Rung, ...]:
    """Return the rungs for a model, the largest first, with sizes as they will be.

    With a largest size, where the first format that fits loses too much, a mix of formats that takes all of that size
    is tried before training.
    """
    return tuple(_rungs(task, GROUPS if task.is_gpu else GGUF, None if task.is_gpu else goal.most_bytes))


def _rungs(task: Task, forms: Sequence[Form], most_bytes: int | None) -> Iterator[Rung]:
    is_mixed = most_bytes is None  # no mix, or it has had its turn
    for level, form in enumerate(forms):
        expected = None if task.is_gpu else quantize(task.model, form.name, output="planned.gguf", dry_run=True).nbytes
        for method in form.methods:
            if method == "qat" and not is_mixed and _is_first(expected, most_bytes):
                is_mixed = True
                yield _mix(task, level, most_bytes)
            make = _made(task, form.name, method)
            yield Rung(f"{form.name}, {method}", GAINS[method], level, make, expected)
        if not is_mixed and _is_first(expected, most_bytes):
            is_mixed = True
            yield _mix(task, level, most_bytes)


def _is_first(expected: int | None, most_bytes: int | None) -> bool:
    return expected is not None and most_bytes is not None and expected <= most_bytes


def _mix(task: Task, level: int, most_bytes: int | None) -> Rung:
    """The rung of a mix of formats for each tensor, chosen by what rounding it costs."""
    return Rung("mixed precision, best", GAINS["mixed"], level, _planned(task, most_bytes), most_bytes)


def _planned(task: Task, most_bytes: int | None) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        study = Study(target_named("cpu").formats, calibration=_text(task), threads=task.threads)
        studied = analyse(task.model, folder / "analysis", study, resume=True)
        plan = Planner(task.model, studied).plan(plans.PlanGoal(max_bytes=most_bytes)).file
        return _measured(task, folder, plan.file_type, "best", plan.tensor_formats(task.model))

    return make


def _text(task: Task) -> Calibration:
    return Calibration(task.calibration)


def _made(task: Task, name: str, method: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        return _measured(task, folder, name, method, ())

    return make


def _measured(task: Task, folder: Path, name: str, method: str, formats: Sequence[str]) -> Made:
    """Quantize, and compare with full precision; `formats`: overrides by tensor, of a plan."""
    kind = f"{name}-mix" if formats else name
    path = folder / (f"{task.model.name}-{kind}-{method}" + ("" if task.is_gpu else ".gguf"))
    more: dict[str, Any] = {"container": "compressed-tensors"} if task.is_gpu else {}
    more |= {"tensor_formats": tuple(formats)} if formats else {}
    if method == "qat":
        source = task.calibration if task.train is None else task.train
        count = settings.SEQUENCES if task.train is None else settings.TRAINING_SEQUENCES
        more |= {"train": Calibration(source, count), "training": settings.of_epochs(task.epochs)}
    card = quantize(
        task.model,
        name,
        output=path,
        method=method,
        calibration=None if method == "rtn" else _text(task),
        force=method != "rtn",  # what gains nothing is measured, and told to
        threads=task.threads,
        command="tersor advise",
        **more,
    )
    found = evaluate(path, **_against(task, folder), data=task.data, windows=task.windows, command="tersor advise")
    loss = found.metric("kl_mean_upper_bound") or found.metric("kl_mean")  # where predictions were stored in part
    if loss is None:
        raise MissingError(f"{path.name}: the divergence from full precision could not be measured")
    return Made(path.name, card.nbytes, loss, _speed(task, path, folder), card.notes)


def _against(task: Task, folder: Path) -> dict[str, Any]:
    """Return what to compare with: full precision, whose predictions are stored for the rungs that follow.

    As many of the likeliest tokens are stored as STORED_BYTES allow: of small vocabularies all, and nothing is lost.
    """
    stored = folder / REFERENCE
    if stored.is_file():
        return {"against": stored}
    vocabulary = next((tensor.rows for tensor in task.model.tensors if tensor.name == "token_embd.weight"), 1)
    kept = STORED_BYTES // (TOKEN_BYTES * max(task.windows, 1) * DEFAULT_CONTEXT)
    return {"against": task.model, "save_reference": stored, "top_k": min(vocabulary, max(kept, LEAST_KEPT))}


def _speed(task: Task, path: Path, folder: Path) -> Metric | None:
    """Tokens a second beside those of 16 bits, in turn."""
    if not task.needs_speed:
        return None
    full = folder / f"{task.model.name}-{FULL}-rtn.gguf"
    if path == full:
        return Metric("speed", 1.0)
    if not full.is_file():
        quantize(task.model, FULL, output=full, command="tersor advise")
    found = bench(path, against=full, threads=task.threads, prompt=64, generate=32, batches=(1,), rounds=SPEED_ROUNDS)
    return next((ratio for ratio in found[0].ratios if ratio.name == "generation_tokens_per_s"), None)
