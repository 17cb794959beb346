"""Feed-forward by experts: a router picks some for each token, and each expert sees its own tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Share", "feed_experts", "route"]


@dataclass(frozen=True, slots=True)
class Share:
    """The tokens of one expert: their numbers [n], and the weight [n, 1] of what it makes of each."""

    expert: int
    tokens: Tensor
    weights: Tensor


def route(logits: Tensor, used: int) -> Iterator[Share]:
    """Yield the share of every expert, empty ones too: softmax over all, the `used` largest, their sum made 1.

    logits  [tokens, experts]
    """
    weights, chosen = torch.topk(torch.softmax(logits, dim=-1), used, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    order = torch.argsort(chosen.flatten(), stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=logits.shape[1]).tolist()
    for expert, places in enumerate(torch.split(order, counts)):
        yield Share(expert, places // used, weights.flatten()[places, None])


def feed_experts(x: Tensor, logits: Tensor, used: int, feed: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return [tokens, hidden]: for each token the weighted sum of what its experts make of it.

    x     [tokens, hidden]
    feed  from an expert's tokens [n, hidden] and its number to its output [n, hidden]; called with n = 0 too
    """
    made = torch.zeros_like(x)
    for share in route(logits, used):
        made.index_add_(0, share.tokens, feed(x[share.tokens], share.expert) * share.weights)
    return made
