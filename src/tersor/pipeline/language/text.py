"""Perplexity and divergence on a text: both models read the same windows side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tersor import reference_model
from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError, UnsupportedError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.language.comparison import Kept, MetricFunction, Progress, Tokens, compare, noise
from tersor.evaluation.language.metrics import histogram, measure
from tersor.evaluation.language.reading import read_whole
from tersor.evaluation.language.stored import Header, recording, same_opening, targets_sha256
from tersor.evaluation.language.streams import Scorer, Subject, logits_of, shared_vocabulary
from tersor.evaluation.language.windows import Int32Array, Window, cut, text_tokens
from tersor.evaluation.language.worst import samples
from tersor.pipeline.language.findings import Findings
from tersor.pipeline.language.references import Reference
from tersor.pipeline.steps.stages import run_ahead, start

__all__ = ["Recording", "Text", "Windows", "compare_on_text", "read_text"]

NOISE_WINDOWS, WINDOWS_PER_NOISE = 4, 50
"""The noise floor is measured on one window in so many, on NOISE_WINDOWS at most: it has to cost little."""
OPENING = 2000
_HELD_OUT = "held_out.txt"


@dataclass(frozen=True, slots=True)
class Text:
    """A text with the name and the SHA-256 of its file; `content` is empty where only its tokens are known."""

    name: str
    sha256: str
    content: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Windows:
    """How to cut, as for `windows.cut`."""

    context: int
    stride: int | None = None
    limit: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """Where to store the reference, and how many tokens of each prediction."""

    path: Path
    kept: int


@dataclass(slots=True)
class _Run:
    """One comparison on its way."""

    subject: Subject
    reference: Reference
    text: Text
    how: Windows
    threads: int
    tokens: Int32Array
    windows: list[Window]
    vocabulary: int
    notes: list[str] = field(default_factory=list)


def read_text(path: Path | None) -> Text:
    """Read a UTF-8 text file; None: the held-out text of the embedded reference model."""
    source = reference_model.PATH / _HELD_OUT if path is None else path.expanduser()
    content = read_whole(source)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{source}: not UTF-8 text ({error})") from error
    note = "the text is tersor's own: Python source code, for want of --data; give text like that of your use"
    digest = hashlib.sha256(content).hexdigest()
    return Text(source.name, digest, text, (note,) if path is None else ())


def compare_on_text(
    subject: Subject,
    reference: Reference,
    text: Text | None,
    how: Windows,
    *,
    threads: int,
    own: Mapping[str, MetricFunction],
    save: Recording | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Compare both models on `text`, None: on the text of a stored reference; at most a window of each is in work."""
    run = _prepared(subject, reference, text, how, threads)
    noise_of, engine = _noise(run)
    left = run_ahead(_reference_stream(run, save))
    right = run_ahead(logits_of(subject, run.windows, run.vocabulary))
    with closing(left), closing(right):
        found, worst = compare(
            run.windows,
            left,
            right,
            run.vocabulary,
            context=run.how.context,
            threads=threads,
            own=own,
            progress=progress,
        )
    run.notes.append(f"noise floor: {engine} against itself at another batch size, {len(noise_of.place)} tokens")
    begin = subject.begin
    return Findings(
        task="language",
        data=run.text.name,
        data_sha256=run.text.sha256,
        metrics=measure(found, noise_of),
        settings={
            "convention": "llama-perplexity: second half of windows without overlap; *_sliding: every token once",
            "context": run.how.context,
            "stride": _stride(run.how),
            "windows": sum(window.chunk < len(window.targets) for window in run.windows),
            "tokens_scored": int(found.chunk.sum()),
            "tokens_scored_sliding": int(found.sliding.sum()),
            "begin_token": -1 if begin is None else begin,
            "vocabulary": run.vocabulary,
            **({} if run.how.seed is None else {"seed": run.how.seed}),
        },
        histograms=(histogram(found),),
        samples=samples(worst, run.tokens, subject.detokenize, ("reference", "artefact")),
        notes=(*run.text.notes, *reference.notes, *run.notes),
    )


def _prepared(subject: Subject, reference: Reference, text: Text | None, how: Windows, threads: int) -> _Run:
    stored = reference.stored
    if stored is not None:
        return _prepared_stored(subject, reference, text, how, threads)
    if text is None:
        raise SchemeError("a text is needed to compare on")
    tokens = text_tokens(subject, text.content)
    other = reference.scorer
    opening = text.content[: 10 * OPENING]
    if isinstance(other, LlamaCpp) and other.tokenize(opening) != subject.tokenize(opening):
        raise UnsupportedError(
            f"{reference.name} cuts the text into other tokens than {subject.path.name}: other models"
        )
    windows = _cut(tokens, how, subject.begin)
    vocabulary = shared_vocabulary(reference.vocabulary, subject.vocabulary_size)
    return _Run(subject, reference, text, how, threads, tokens, windows, vocabulary)


def _prepared_stored(subject: Subject, reference: Reference, text: Text | None, how: Windows, threads: int) -> _Run:
    """Take tokens and settings from the stored reference, and refuse what was asked for and is not in it."""
    stored = reference.stored
    if stored is None:
        raise SchemeError(f"{reference.name} is not stored")
    header = stored.header
    if text is not None and text.sha256 != header.data_sha256:
        raise SchemeError(f"{text.name} is not the text that {stored.path.name} was recorded on ({header.data})")
    if header.vocabulary > subject.vocabulary_size:
        raise UnsupportedError(
            f"{stored.path.name} is of a vocabulary of {header.vocabulary}, the artefact has {subject.vocabulary_size}"
        )
    tokens = stored.tokens
    if not same_opening(header, tokens, lambda opening: text_tokens(subject, opening)):
        raise UnsupportedError(f"{subject.path.name} cuts the text of {stored.path.name} otherwise: other models")
    how = Windows(header.context, header.stride, header.limit, header.seed)
    windows = _cut(tokens, how, header.begin)
    stored.check_windows(windows)
    known = Text(header.data, header.data_sha256, "")
    note = f"reference: the {header.kept} likeliest tokens of each prediction were stored; kl_… are lower bounds"
    return _Run(subject, reference, known, how, threads, tokens, windows, header.vocabulary, [note])


def _cut(tokens: Int32Array, how: Windows, begin: int | None) -> list[Window]:
    return cut(tokens, context=how.context, stride=how.stride, begin=begin, limit=how.limit, seed=how.seed)


def _stride(how: Windows) -> int:
    return how.context // 2 if how.stride is None else how.stride


def _noise(run: _Run) -> tuple[Tokens, str]:
    """The noise of whichever engine is the noisier, and its name."""
    chunks = [window for window in run.windows if window.chunk < len(window.targets)][1:]  # whose targets all count
    count = min(NOISE_WINDOWS, max(1, len(chunks) // WINDOWS_PER_NOISE))
    windows = chunks[:: len(chunks) // count][:count]
    scorers: dict[str, Scorer] = {run.subject.version(): run.subject}
    if run.reference.scorer is not None:
        scorers.setdefault(run.reference.engine, run.reference.scorer)
        if len(scorers) == 1:
            scorers = {run.reference.engine: run.reference.scorer}
    works = [
        start(partial(noise, scorer, windows, run.vocabulary, context=run.how.context, threads=run.threads))
        for scorer in scorers.values()
    ]
    found = zip([work.result() for work in works], scorers, strict=True)
    return max(found, key=lambda pair: float(pair[0].divergence.mean()))


def _reference_stream(run: _Run, save: Recording | None) -> Iterator[Float32 | Kept]:
    stored, scorer = run.reference.stored, run.reference.scorer
    if stored is not None:
        return stored.slices(run.windows)
    if scorer is None:
        raise SchemeError(f"{run.reference.name} has neither an engine nor a file")
    logits = logits_of(scorer, run.windows, run.vocabulary)
    return logits if save is None else recording(save.path, _header(run, save), run.tokens, run.windows, logits)


def _header(run: _Run, save: Recording) -> Header:
    return Header(
        reference=run.reference.name,
        engine=run.reference.engine,
        data=run.text.name,
        data_sha256=run.text.sha256,
        opening=run.text.content[:OPENING],
        vocabulary=run.vocabulary,
        context=run.how.context,
        stride=_stride(run.how),
        begin=run.subject.begin,
        limit=run.how.limit,
        seed=run.how.seed,
        kept=min(save.kept, run.vocabulary),
        tokens=len(run.tokens),
        rows=sum(len(window.targets) for window in run.windows),
        targets_sha256=targets_sha256(run.windows),
    )
