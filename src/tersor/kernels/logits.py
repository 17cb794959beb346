"""Compare rows of logits: checks the input, then hands it to the native kernels or to the reference.

Rows may be views with any step on axis 0 (every second row, a window of a larger buffer): they are read where they
lie. Only a step on axis 1 costs a copy. Neither threads nor instruction set change a bit of the native results.

Accuracy: losses are good to 2e-7 of the largest |logit|, or of 1 where that is smaller; the divergence d to
5e-7·√d + 2e-6·d + 1e-12 nats, and it is never negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.kernels.codec import native, tensor
from tersor.kernels.reference import logits as definition

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bounded", "TokenComparison", "TopK", "compare_logits", "compare_to_top_k", "token_losses", "top_k"]

Int32Array: TypeAlias = npt.NDArray[np.int32]
Float64: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Targets: TypeAlias = npt.NDArray[np.integer[Any]]


class Native(Protocol):
    """What the compiled module offers for logits."""

    def compare_logits(
        self, reference: Float32, subject: Float32, targets: Int32Array, threads: int, /
    ) -> tuple[Float64, Float64, Float64, Flags, Float64]: ...
    def token_losses(self, logits: Float32, targets: Int32Array, threads: int, /) -> Float64: ...
    def top_k(self, logits: Float32, k: int, threads: int, /) -> tuple[Int32Array, Float32, Float64, Float64]: ...
    def compare_to_top_k(  # noqa: PLR0917 (as the module has it)
        self,
        ids: Int32Array,
        log_probabilities: Float32,
        tail_log_mass: Float64,
        tail_entropy: Float64,
        subject: Float32,
        targets: Int32Array,
        threads: int,
        /,
    ) -> tuple[Float64, Float64, Float64, Flags, Float64]: ...


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """Two predictions of the same tokens, all arrays [n].

    divergence      Kullback-Leibler divergence from the reference to the subject over the whole vocabulary, nats
    reference_loss  -log of the probability that the reference gives to the target, nats
    subject_loss    the same of the subject
    same_top        whether both find the same token likeliest (of equals the first)
    shared_top5     share of the five likeliest that both have in common
    """

    divergence: Float64
    reference_loss: Float64
    subject_loss: Float64
    same_top: Flags
    shared_top5: Float64


@dataclass(frozen=True, slots=True)
class TopK:
    """What is kept of a prediction over a large vocabulary.

    ids                int32 [n, k], likeliest first, of equals the first
    log_probabilities  float32 [n, k], nats
    tail_log_mass      float64 [n]: log of the probability of all other tokens, -inf for none
    tail_entropy       float64 [n]: Σ p·log p over all other tokens, ≤ 0
    """

    ids: Int32Array
    log_probabilities: Float32
    tail_log_mass: Float64
    tail_entropy: Float64


@dataclass(frozen=True, slots=True)
class Bounded:
    """What a kept prediction still says about a subject, all arrays [n].

    low, high  bounds of the divergence in nats; everything else as in TokenComparison
    """

    low: Float64
    high: Float64
    reference_loss: Float64
    subject_loss: Float64
    same_top: Flags
    shared_top5: Float64


def compare_logits(reference: Float32, subject: Float32, targets: Targets, *, threads: int = 0) -> TokenComparison:
    """Compare two predictions of each token: logits [n, vocabulary] twice, targets [n].

    threads  0: as many as there are cores; changes no result
    A logit of -inf rules its token out. Raises ShapeError, and FormatError where a logit is NaN or +inf or a row
    rules out every token.

    >>> import numpy as np
    >>> same = compare_logits(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32), np.array([2]))
    >>> float(same.divergence[0]), round(float(same.subject_loss[0]), 4)
    (0.0, 1.3863)
    """
    ours, theirs = _rows("reference", reference), _rows("subject", subject)
    if ours.shape != theirs.shape:
        raise ShapeError(
            f"reference and subject need logits of the same shape [n, vocabulary], got {ours.shape} and {theirs.shape}"
        )
    wanted = _targets(targets, ours)
    module = _native()
    if module is not None:
        try:
            return TokenComparison(*module.compare_logits(ours, theirs, wanted, threads))
        except ValueError:
            _check_values("reference", ours)  # says where
            _check_values("subject", theirs)
            raise
    _check_values("reference", ours)
    _check_values("subject", theirs)
    found = definition.compare(_shared(ours), _shared(theirs), tensor(wanted))
    return TokenComparison(*(column.numpy() for column in found))


def token_losses(logits: Float32, targets: Targets, *, threads: int = 0) -> Float64:
    """Return -log p(target) in nats, float64 [n], of logits [n, vocabulary]; errors as for `compare_logits`.

    >>> import numpy as np
    >>> token_losses(np.log(np.array([[0.25, 0.75]], np.float32)), np.array([1])).round(6).tolist()
    [0.287682]
    """
    rows = _rows("logits", logits)
    wanted = _targets(targets, rows)
    module = _native()
    if module is not None:
        try:
            return module.token_losses(rows, wanted, threads)
        except ValueError:
            _check_values("logits", rows)
            raise
    _check_values("logits", rows)
    found: Float64 = definition.losses(_shared(rows), tensor(wanted)).numpy()
    return found


def top_k(logits: Float32, k: int, *, threads: int = 0) -> TopK:
    """Keep of each row of logits [n, vocabulary] the `k` likeliest tokens and two sums over all others.

    That is 8·k + 16 bytes a row, and enough for `compare_to_top_k`. Errors as for `compare_logits`; SchemeError if
    `k` is not 1 up to the vocabulary.

    >>> import numpy as np
    >>> kept = top_k(np.log(np.array([[0.25, 0.125, 0.5, 0.125]], np.float32)), 2)
    >>> kept.ids.tolist(), np.exp(kept.tail_log_mass).round(6).tolist()
    ([[2, 0]], [0.25])
    """
    rows = _rows("logits", logits)
    if not 1 <= k <= rows.shape[1]:
        raise SchemeError(f"k must be 1 up to the vocabulary of {rows.shape[1]} tokens, got {k}")
    module = _native()
    if module is not None:
        try:
            return TopK(*module.top_k(rows, k, threads))
        except ValueError:
            _check_values("logits", rows)
            raise
    _check_values("logits", rows)
    return TopK(*(column.numpy() for column in definition.top_k(_shared(rows), k)))


def compare_to_top_k(
    stored: TopK, subject: Float32, targets: Targets, target_log_p: Float64, *, threads: int = 0
) -> Bounded:
    """Compare logits [n, vocabulary] with what `top_k` kept of the reference's.

    target_log_p  float64 [n]: log of the probability that the reference gave to the target, which k may not hold
    The divergence lies between `low` (over the kept tokens and "another") and `high` (the tail's mass where the
    subject finds it least likely, no token above the last kept), but for 1e-6 of itself that float32 costs; equal
    where everything was kept.

    >>> import numpy as np
    >>> logits = np.log(np.array([[0.25, 0.125, 0.5, 0.125]], np.float32))
    >>> found = compare_to_top_k(top_k(logits, 2), logits, np.array([2]), np.log([0.5]))
    >>> (abs(found.low) < 1e-7).all() and (found.low <= found.high).all() and bool(found.same_top[0])
    True
    """
    rows = _rows("subject", subject)
    wanted = _targets(targets, rows)
    kept = _kept(stored, rows)
    if np.shape(target_log_p) != (len(rows),):
        raise ShapeError(f"{len(rows)} rows need one log-probability each, got shape {np.shape(target_log_p)}")
    loss = -np.asarray(target_log_p, np.float64)
    module = _native()
    if module is not None:
        try:
            low, high, subject_loss, same, shared = module.compare_to_top_k(*kept, rows, wanted, threads)
        except ValueError:
            _check_values("subject", rows)
            raise
        return Bounded(low, high, loss, subject_loss, same, shared)
    _check_values("subject", rows)
    least, most = definition.bounds(definition.Kept(*(tensor(column) for column in kept)), _shared(rows))
    likeliest = definition.order(_shared(rows), min(5, kept[0].shape[1])).numpy()
    shared = (kept[0][:, : likeliest.shape[1], None] == likeliest[:, None, :]).sum((1, 2)) / likeliest.shape[1]
    return Bounded(
        least.numpy(),
        most.numpy(),
        loss,
        definition.losses(_shared(rows), tensor(wanted)).numpy(),
        likeliest[:, 0] == kept[0][:, 0],
        shared,
    )


def _shared(rows: Float32) -> Tensor:
    return tensor(np.ascontiguousarray(rows))  # torch knows no negative steps


def _native() -> Native | None:
    return cast("Native | None", native())


def _kept(stored: TopK, rows: Float32) -> tuple[Int32Array, Float32, Float64, Float64]:
    n, k = len(rows), stored.ids.shape[1] if np.ndim(stored.ids) == 2 else 0
    shapes = [np.shape(column) for column in (stored.ids, stored.log_probabilities)]
    sums = [np.shape(column) for column in (stored.tail_log_mass, stored.tail_entropy)]
    if k < 1 or shapes != [(n, k)] * 2 or sums != [(n,)] * 2:
        raise ShapeError(f"{n} rows need {n} kept rows of the reference, got {[*shapes, *sums]}")
    if stored.ids.size and not (stored.ids.min() >= 0 and stored.ids.max() < rows.shape[1]):
        raise ShapeError(f"a kept token is outside of the vocabulary of {rows.shape[1]}")
    return (
        np.ascontiguousarray(stored.ids, np.int32),
        np.ascontiguousarray(stored.log_probabilities, np.float32),
        np.ascontiguousarray(stored.tail_log_mass, np.float64),
        np.ascontiguousarray(stored.tail_entropy, np.float64),
    )


def _rows(name: str, logits: Float32) -> Float32:
    if np.ndim(logits) != 2 or np.shape(logits)[1] < 1:
        raise ShapeError(f"the {name} must be logits [n, vocabulary], got shape {np.shape(logits)}")
    rows = np.asarray(logits, np.float32)
    if rows.strides[1] != rows.itemsize or not rows.flags.aligned:
        rows = np.ascontiguousarray(rows)
    return rows


def _targets(targets: Targets, logits: Float32) -> Int32Array:
    given = np.asarray(targets)
    if given.shape != (len(logits),) or given.dtype.kind not in "iu":
        rows = f"{len(logits)} rows of logits"
        raise ShapeError(f"{rows} need {len(logits)} targets (ids of tokens), got {given.dtype} {given.shape}")
    bad = np.flatnonzero((given < 0) | (given >= logits.shape[1]))
    if bad.size:
        raise ShapeError(f"target {bad[0]} is {given[bad[0]]}, but the vocabulary has {logits.shape[1]} tokens")
    return np.ascontiguousarray(given, dtype=np.int32)


def _check_values(name: str, rows: Float32) -> None:
    """Refuse NaN, +inf and rows that rule out every token."""
    if rows.size == 0:
        return
    high = rows.max(axis=1)  # NaN wins
    bad = np.flatnonzero(~((high > -np.inf) & (high < np.inf)))
    if bad.size == 0:
        return
    row = int(bad[0])
    if high[row] == -np.inf:
        raise FormatError(f"row {row} of the {name} rules out every token: all its logits are -inf")
    token = int(np.flatnonzero(~(rows[row] < np.inf))[0])
    raise FormatError(f"the {name} at row {row}, token {token} is {rows[row, token]}: logits are numbers or -inf")
