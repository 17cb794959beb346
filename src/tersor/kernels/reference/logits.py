"""What rows of logits say about the next token, in float64: the definition that the native kernel approaches.

A logit of -inf is a token of probability 0; it adds nothing where the reference rules it out, and makes the
divergence infinite where only the subject does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Compared", "Kept", "bounds", "compare", "losses", "order", "top_k"]

AT_ONCE = 1 << 21  # logits worked on together: bounds memory, changes no result


class Compared(NamedTuple):
    """One value per row, [n]: divergence in nats, loss of the target by each, equal argmax, shared of the top five."""

    divergence: Tensor
    reference_loss: Tensor
    subject_loss: Tensor
    same_top: Tensor
    shared_top5: Tensor


class Kept(NamedTuple):
    """The k likeliest tokens of each row [n, k], the log of the others' mass [n], and Σ p·log p over them [n]."""

    ids: Tensor
    log_probabilities: Tensor
    tail_log_mass: Tensor
    tail_entropy: Tensor


def compare(reference: Tensor, subject: Tensor, targets: Tensor) -> Compared:
    """Compare two predictions of each token: [n, vocabulary] twice, targets [n]."""
    step = max(1, AT_ONCE // reference.shape[1])
    parts = [
        _compare(reference[at : at + step], subject[at : at + step], targets[at : at + step])
        for at in range(0, max(1, len(targets)), step)
    ]
    return Compared(*(torch.cat(column) for column in zip(*parts, strict=True)))


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target), float64 [n], of logits [n, vocabulary]."""
    step = max(1, AT_ONCE // logits.shape[1])
    parts = [
        _loss(_log_probabilities(logits[at : at + step]), targets[at : at + step])
        for at in range(0, max(1, len(targets)), step)
    ]
    return torch.cat(parts)


def top_k(logits: Tensor, k: int) -> Kept:
    """Keep the k likeliest tokens of each row, likeliest first and of equals the first, and sum up the rest."""
    log_p = _log_probabilities(logits)
    ids = order(logits, k)
    tail = log_p.scatter(1, ids, -torch.inf)
    p = tail.exp()
    entropy = torch.where(p > 0, p * tail, 0.0).sum(1)
    kept = log_p.gather(1, ids)
    return Kept(ids.to(torch.int32), kept.to(torch.float32), torch.logsumexp(tail, 1), entropy)


def bounds(kept: Kept, subject: Tensor) -> tuple[Tensor, Tensor]:
    """Bound the divergence of `subject` [n, vocabulary] from what was kept of the reference: low and high, [n].

    low   the divergence over k + 1 outcomes, the kept tokens and "another": merging outcomes never adds divergence
    high  Σ p·log p of the tail is known; its Σ p·-log q is largest where the mass lies on the tokens that the subject
          finds least likely, each as full as the last of the kept allows
    The log-probabilities were rounded to float32: terms p·log(p/q) - p + q make that an error of second order.
    """
    ids = kept.ids.to(torch.int64)
    log_p, log_q = kept.log_probabilities.to(torch.float64), _log_probabilities(subject)
    head = _balanced(log_p, log_q.gather(1, ids)).sum(1)
    rest = torch.logsumexp(log_q.scatter(1, ids, -torch.inf), 1)
    low = head + _balanced(kept.tail_log_mass, rest)
    mass, each = kept.tail_log_mass.exp()[:, None], log_p[:, -1:].exp()
    cost = -log_q.scatter(1, ids, torch.inf)  # kept tokens sort last and get no mass
    cost = cost.sort(1, descending=True).values
    places = torch.arange(cost.shape[1], dtype=torch.float64, device=cost.device)
    filled = torch.minimum((mass - places * each).clamp(min=0), each)
    worst = torch.where(filled > 0, filled * cost, 0.0).sum(1)
    return low, torch.maximum(head + kept.tail_entropy + worst - mass[:, 0] + rest.exp(), low)


def _compare(reference: Tensor, subject: Tensor, targets: Tensor) -> Compared:
    log_p, log_q = _log_probabilities(reference), _log_probabilities(subject)
    shared = min(5, reference.shape[1])
    ours, theirs = order(reference, shared), order(subject, shared)
    return Compared(
        _terms(log_p, log_q).sum(1).clamp(min=0),
        _loss(log_p, targets),
        _loss(log_q, targets),
        ours[:, 0] == theirs[:, 0],
        (ours[:, :, None] == theirs[:, None, :]).sum((1, 2)).to(torch.float64) / shared,
    )


def _terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p·log(p / q), 0 where p is 0."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q).nan_to_num(nan=0.0, posinf=torch.inf))


def _balanced(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p·log(p / q) - p + q ≥ 0; the last two add up to nothing over a whole distribution."""
    return (_terms(log_p, log_q) - log_p.exp() + log_q.exp()).clamp(min=0)


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.float64), 1)


def _loss(log_p: Tensor, targets: Tensor) -> Tensor:
    return -log_p.gather(1, targets.to(torch.int64)[:, None])[:, 0]


def order(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row, largest first, of equals the first."""
    return torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :k]
