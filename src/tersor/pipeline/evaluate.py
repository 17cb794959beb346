"""`tersor.evaluate`: how far is an artefact from the model that it was made from, on text or on questions?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Unpack

from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.core.evaluation import Evaluation, LayerError, Limit
from tersor.evaluation.checks.tensors import TensorProgress
from tersor.evaluation.language.comparison import MetricFunction, Progress
from tersor.evaluation.language.demands import Demands, check_demands, judged
from tersor.evaluation.language.streams import Subject
from tersor.evaluation.language.windows import DEFAULT_CONTEXT
from tersor.files.gguf import split_paths
from tersor.models import Model, load
from tersor.pipeline.bench import bench, weights_sha256
from tersor.pipeline.language.findings import Findings
from tersor.pipeline.language.questions import compare_on_questions
from tersor.pipeline.language.references import Reference, open_reference, open_subject, stored_header
from tersor.pipeline.language.text import Recording, Windows, compare_on_text, read_text
from tersor.pipeline.layers import compare_layers
from tersor.pipeline.steps import cards, provenance

__all__ = ["Settings", "evaluate", "layer_errors"]

TOP_K = 64
ENGINE_PACKAGES = ("xllamacpp", "torch", "transformers")


class Settings(Demands, total=False):
    """What `tersor.evaluate` takes beyond the two models and the data; None is the same as absent.

    context            tokens of a window; else 512, or what the model was trained for if that is less
    stride             of the sliding perplexity; else half a window, 0: leave it out
    windows            how many windows or questions to take at most: the first ones, or with `seed` a random subset
    metrics            name → function of (reference logits [n, vocabulary], subject logits, next tokens [n]) to one
                       number a token, [n], whose mean is reported under that name
    reference_engine   "auto", "transformers" or "llama.cpp"
    save_reference     file to store the reference's predictions in, for comparisons without it
    top_k              tokens of each prediction that are stored; else 64
    threads            of each engine; both run at the same time; else half of the cores
    max_latency_ratio  largest allowed ratio of the time per token to that of `against`, which is measured with `bench`
    """

    context: int | None
    stride: int | None
    windows: int | None
    seed: int | None
    metrics: Mapping[str, MetricFunction] | None
    reference_engine: str
    save_reference: str | Path | None
    top_k: int | None
    threads: int
    max_latency_ratio: float | None


@dataclass(frozen=True, slots=True)
class _Task:
    """What was asked for, checked."""

    path: Path
    against: str | Path | Model
    data: Path | None
    choices: Path | None
    settings: Settings
    how: Windows
    threads: int
    progress: Progress | None


def evaluate(
    artefact: str | Path,
    *,
    against: str | Path | Model,
    data: str | Path | None = None,
    choices: str | Path | None = None,
    save: bool = True,
    command: str = "",
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Evaluation:
    """Compare `artefact`, a GGUF or a folder of Hugging Face form, with the model `against`; return what was found.

    against   what `tersor.load` takes or returned, or a file that `save_reference` wrote
    data      a UTF-8 text; None: the held-out text of the embedded reference model, or the text of the stored reference
    choices   instead of `data`: questions with given answers, one JSON object a line (context, choices, answer; or as
              HellaSwag or ARC have them)
    save      whether to add the result to the Card beside the artefact, if there is one
    Settings  context, stride, windows, limits and more: see there

    Perplexity follows llama-perplexity; logits pass by in slices and are never stored. Raises SchemeError for settings
    that do not fit and for too short a text, MissingError, FormatError, UnsupportedError and EngineError.
    """
    began = perf_counter()
    task = _checked(artefact, against, data, choices, settings, progress=progress)
    with ExitStack() as stack:
        context, threads = task.how.context, task.threads
        subject = open_subject(task.path, stack, context=context, threads=threads)
        engine = settings.get("reference_engine", "auto")
        reference = open_reference(against, stack, context=context, threads=threads, engine=engine)
        found = _compared(task, subject, reference)
        evaluation = _evaluation(task.path, subject, reference, found)
    limits = (*judged(found.metrics, settings), *_latency(task))
    seconds = round(perf_counter() - began, 3)
    evaluation = replace(evaluation, limits=limits, seconds=seconds, command=command)
    if save:
        cards.add(cards.carded(task.path), evaluation=evaluation)
    return evaluation


def layer_errors(
    artefact: str | Path,
    *,
    against: str | Path | Model,
    data: str | Path | None = None,
    save: bool = True,
    threads: int = 0,
    progress: TensorProgress | None = None,
) -> tuple[LayerError, ...]:
    """Compare layer by layer as `compare_layers` does, and with `save` add the rows to the Card beside the artefact."""
    if stored_header(against) is not None:
        raise SchemeError(f"{Path(str(against)).name} holds predictions, no layers: compare with the model itself")
    path, text = _located(Path(artefact).expanduser()), None if data is None else Path(data).expanduser()
    if path.is_dir():
        raise UnsupportedError(
            f"{path.name}: layers are compared of a GGUF; of a folder `tersor evaluate` does the rest"
        )
    rows = compare_layers(
        path, against=against, data=text, threads=threads or max(1, (os.cpu_count() or 2) // 2), progress=progress
    )
    if save:
        cards.add(path, layers=rows)
    return rows


def _checked(
    artefact: str | Path,
    against: str | Path | Model,
    data: str | Path | None,
    choices: str | Path | None,
    settings: Settings,
    *,
    progress: Progress | None,
) -> _Task:
    """Refuse before models are loaded what cannot work."""
    check_demands(settings, "choice" if choices is not None else "language")
    path = _located(Path(artefact).expanduser())
    if choices is not None:
        if data is not None:
            raise SchemeError("give a text or questions, not both: each is an evaluation of its own")
        if settings.get("save_reference") is not None or settings.get("metrics"):
            raise SchemeError("stored references and metrics of your own are for texts, not for questions")
    if settings.get("max_latency_ratio") is not None and (isinstance(against, Model) or stored_header(against)):
        raise SchemeError("max_latency_ratio needs a model to measure beside: give its path, not what was stored of it")
    _check_stored(against, settings)
    context = _context(path, against, settings.get("context"))
    how = Windows(context, settings.get("stride"), settings.get("windows"), settings.get("seed"))
    threads = settings.get("threads") or max(1, (os.cpu_count() or 2) // 2)
    texts = tuple(None if file is None else Path(file).expanduser() for file in (data, choices))
    return _Task(path, against, texts[0], texts[1], settings, how, threads, progress)


def _check_stored(against: str | Path | Model, settings: Settings) -> None:
    """Refuse what a stored reference cannot be asked for: its windows are those it was recorded on."""
    header = stored_header(against)
    if header is None:
        return
    name = Path(str(against)).name
    recorded = {"windows": header.limit, "stride": header.stride, "seed": header.seed, "top_k": header.kept}
    asked = {"windows": settings.get("windows"), "stride": settings.get("stride")}
    asked |= {"seed": settings.get("seed"), "top_k": settings.get("top_k")}
    for key, value in asked.items():
        if value is not None and value != recorded[key]:
            held = "none" if recorded[key] is None else recorded[key]
            raise SchemeError(
                f"{name} was recorded with {key} {held}, {value} was asked for: leave that out, or compare with the "
                "model itself"
            )
    if settings.get("save_reference") is not None or settings.get("reference_engine", "auto") != "auto":
        raise SchemeError(f"{name} is stored already, and no engine runs for it: compare with the model itself")


def _compared(task: _Task, subject: Subject, reference: Reference) -> Findings:
    how, settings = task.how, task.settings
    if task.choices is not None:
        return compare_on_questions(
            subject,
            reference,
            task.choices,
            context=how.context,
            limit=how.limit,
            seed=how.seed,
            progress=task.progress,
        )
    is_known = task.data is None and reference.stored is not None
    target = settings.get("save_reference")
    return compare_on_text(
        subject,
        reference,
        None if is_known else read_text(task.data),
        how,
        threads=task.threads,
        own=settings.get("metrics") or {},
        save=None if target is None else Recording(Path(target), settings.get("top_k") or TOP_K),
        progress=task.progress,
    )


def _latency(task: _Task) -> tuple[Limit, ...]:
    """Judge the time per token, if that was asked for; `bench` adds what it measures to the Card itself."""
    ratio = task.settings.get("max_latency_ratio")
    if ratio is None or isinstance(task.against, Model):
        return ()
    return bench(task.path, against=task.against, threads=task.threads, batches=(1,), max_latency_ratio=ratio)[0].limits


def _evaluation(path: Path, subject: Subject, reference: Reference, found: Findings) -> Evaluation:
    return Evaluation(
        task=found.task,
        subject=path.resolve().name,
        subject_sha256=weights_sha256(path),
        reference=reference.name,
        data=found.data,
        data_sha256=found.data_sha256,
        engines={"subject": subject.version(), "reference": reference.engine},
        settings=found.settings,
        metrics=found.metrics,
        histograms=found.histograms,
        samples=found.samples,
        notes=found.notes,
        versions=_versions(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _versions() -> dict[str, str]:
    found = provenance.versions()
    for package in ENGINE_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _located(path: Path) -> Path:
    """Return a folder of Hugging Face form, or the first part of a GGUF."""
    if not path.exists():
        raise MissingError(f"{path}: no such file or folder")
    if not path.is_dir():
        return split_paths(path)[0]
    if not (path / "config.json").is_file():
        raise MissingError(f"{path}: no config.json; evaluate takes a GGUF or a folder of Hugging Face form")
    return path


def _context(path: Path, against: str | Path | Model, wanted: int | None) -> int:
    """The length of a window: the one wanted, the stored one, or the usual one; never more than the model knows."""
    model, header = load(path), stored_header(against)
    entry = model.metadata.get(f"{model.architecture}.context_length")
    trained = entry.value if entry is not None and isinstance(entry.value, int) else DEFAULT_CONTEXT
    if header is not None:
        if wanted not in (None, header.context):
            raise SchemeError(f"the stored reference has windows of {header.context} tokens, {wanted} were asked for")
        if header.context > trained:
            raise UnsupportedError(f"{path.name} knows {trained} tokens, the stored reference needs {header.context}")
        return header.context
    if wanted is not None and wanted > trained:
        raise SchemeError(f"{path.name} was trained for {trained} tokens, windows of {wanted} were asked for")
    return wanted if wanted is not None else min(DEFAULT_CONTEXT, trained)
