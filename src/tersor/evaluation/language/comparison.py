"""Two models on the same windows: a handful of numbers per token is kept, logits never."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.evaluation.language.streams import Scorer, pairs_of_batches, parts, rows_at_once
from tersor.evaluation.language.windows import Int32Array, Window
from tersor.evaluation.language.worst import Worst, WorstTokens, likeliest, likeliest_kept
from tersor.evaluation.own import applied
from tersor.kernels.logits import TopK, compare_logits, compare_to_top_k

__all__ = ["Float64", "Kept", "MetricFunction", "Progress", "Tokens", "compare", "noise"]

Float64: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

MetricFunction: TypeAlias = Callable[[Float32, Float32, Int32Array], npt.ArrayLike]
"""A metric of the user's own: logits of the reference and of the subject, float32 [n, vocabulary], and the tokens that
came next, int32 [n]. It returns one number a token, [n], whose mean with its interval is reported. The logits are a
slice of some hundred tokens, are not to be modified, and go away afterwards."""


class Progress(Protocol):
    """Called after every slice."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """`done` of `total` tokens are compared."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A slice of a stored reference: its likeliest tokens, and its exact loss of the targets."""

    likeliest: TopK
    losses: Float64


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was found about each scored token, all arrays [n], in the order of the windows.

    place                its place in the text
    chunk, sliding       whether it counts in each of the two conventions
    divergence           from reference to subject in nats; with a stored reference the least that it can be
    divergence_high      the most that it can be; the same array where it is known
    reference_loss …     as in kernels.logits.TokenComparison
    own                  the user's metrics, by name
    """

    context: int
    place: npt.NDArray[np.int64]
    chunk: Flags
    sliding: Flags
    divergence: Float64
    divergence_high: Float64
    reference_loss: Float64
    subject_loss: Float64
    same_top: Flags
    shared_top5: Float64
    own: Mapping[str, Float64] = field(default_factory=dict)

    @property
    def unit(self) -> npt.NDArray[np.int64]:
        """The chunk that each token lies in: tokens of one are correlated, chunks hardly."""
        return self.place // self.context

    def only(self, which: Flags) -> Tokens:
        """These tokens alone."""
        arrays = {name: getattr(self, name)[which] for name in ("place", "chunk", "sliding", *_COLUMNS)}
        return replace(self, **arrays, own={name: values[which] for name, values in self.own.items()})


_COLUMNS = ("divergence", "divergence_high", "reference_loss", "subject_loss", "same_top", "shared_top5")
Row: TypeAlias = tuple[Float64, Float64, Float64, Float64, Flags, Float64]
"""What is known of a slice: an array for each of _COLUMNS."""


def compare(
    windows: Sequence[Window],
    reference: Iterable[Float32 | Kept],
    subject: Iterable[Float32],
    vocabulary: int,
    *,
    context: int,
    threads: int = 0,
    own: Mapping[str, MetricFunction] | None = None,
    progress: Progress | None = None,
) -> tuple[Tokens, list[Worst]]:
    """Compare two streams of logits over `windows`; return what was found, and the tokens that diverge most.

    reference, subject  as `streams.logits_of` yields them with this vocabulary; both are used up
    own                 the user's metrics; they need logits, not a stored reference
    Raises FormatError where a logit is NaN or infinite, SchemeError for a metric of wrong length.
    """
    rows = rows_at_once(vocabulary)
    found: list[Row] = []
    extra: dict[str, list[Float64]] = {name: [] for name in own or {}}
    worst = WorstTokens()
    done, total = 0, sum(len(window.targets) for window in windows)
    streams = zip(parts(windows, rows), reference, subject, strict=True)
    for (window, start, targets), wanted, values in streams:
        row = _compared(wanted, values, targets, threads)
        found.append(row)
        for name, function in (own or {}).items():
            extra[name].append(_applied(name, function, wanted, values, targets))
        chosen = worst.candidates(row[0], counted=np.arange(start, start + len(targets)) >= window.chunk)
        for index in chosen:
            expected = likeliest_kept(wanted.likeliest, index) if isinstance(wanted, Kept) else likeliest(wanted[index])
            worst.add(float(row[0][index]), window.place + start + index, expected, likeliest(values[index]))
        done += len(targets)
        if progress is not None:
            progress("comparing", done, total)
    return _gathered(windows, context, found, extra), worst.sorted()


def noise(scorer: Scorer, windows: Sequence[Window], vocabulary: int, *, context: int, threads: int = 0) -> Tokens:
    """Compare a model with itself at another batch size, on the first slice of each window."""
    rows = rows_at_once(vocabulary)
    found = [
        _compared(usual, other, targets, threads)
        for targets, usual, other in pairs_of_batches(scorer, windows, vocabulary)
    ]
    shortened = [
        Window(w.begin, w.ids, w.first, w.targets[:rows], min(w.chunk, rows), min(w.sliding, rows)) for w in windows
    ]
    return _gathered(shortened, context, found, {})


def _compared(reference: Float32 | Kept, subject: Float32, targets: Int32Array, threads: int) -> Row:
    if isinstance(reference, Kept):
        bounded = compare_to_top_k(reference.likeliest, subject, targets, -reference.losses, threads=threads)
        return (
            bounded.low, bounded.high, reference.losses, bounded.subject_loss, bounded.same_top, bounded.shared_top5,
        )  # fmt: skip
    exact = compare_logits(reference, subject, targets, threads=threads)
    return (
        exact.divergence, exact.divergence, exact.reference_loss, exact.subject_loss, exact.same_top, exact.shared_top5,
    )  # fmt: skip


def _applied(
    name: str, function: MetricFunction, reference: Float32 | Kept, subject: Float32, targets: Int32Array
) -> Float64:
    if isinstance(reference, Kept):
        raise SchemeError(f"metric {name} needs the logits of the reference, which a stored reference does not hold")
    values = applied(name, function, reference, subject, targets)
    if values.shape != targets.shape:
        raise SchemeError(
            f"metric {name} returned shape {values.shape} for {len(targets)} tokens; one number each is due"
        )
    return values


def _gathered(
    windows: Sequence[Window], context: int, found: Sequence[Row], extra: Mapping[str, Sequence[Float64]]
) -> Tokens:
    columns: dict[str, Any] = {
        name: np.concatenate(c) for name, c in zip(_COLUMNS, zip(*found, strict=True), strict=True)
    }
    counts = [np.arange(len(window.targets)) for window in windows]
    pairs = list(zip(windows, counts, strict=True))
    return Tokens(
        context=context,
        place=np.concatenate([window.place + count for window, count in pairs]),
        chunk=np.concatenate([count >= window.chunk for window, count in pairs]),
        sliding=np.concatenate([count >= window.sliding for window, count in pairs]),
        own={name: np.concatenate(values) for name, values in extra.items()},
        **columns,
    )
