"""Causal attention of grouped heads, with a sliding window and a soft cap where the model has them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["attend"]

_QUERIES = 256
"""Tokens whose scores are held at a time where scores are written out or a window cuts them."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, cap: float | None = None, window: int | None = None
) -> Tensor:
    """Return [batch, tokens, heads · head]: the values, mixed by softmax(scale · query · key).

    query       [batch, tokens, heads, head]
    key, value  [batch, tokens, key heads, head]; heads are a multiple of key heads
    cap         scores s become cap · tanh(s / cap)
    window      how many last tokens, itself included, each token attends to; None: all
    """
    tokens = query.shape[1]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if window is not None and window >= tokens:
        window = None
    if cap is None and window is None:
        return _joined(_plain(query, key, value, scale, None))
    parts = []
    for start in range(0, tokens, _QUERIES):
        stop = min(start + _QUERIES, tokens)
        first = 0 if window is None else max(start - window + 1, 0)
        visible = _visible(start, stop, first, window, query.device)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        if cap is None:
            parts.append(_plain(query[:, :, start:stop], keys, values, scale, visible))
        else:
            parts.append(_capped(query[:, :, start:stop], keys, values, visible, scale=scale, cap=cap))
    return _joined(torch.cat(parts, dim=2))


def _joined(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _visible(start: int, stop: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Return [queries, keys]: which of tokens `first` to `stop` each of tokens `start` to `stop` attends to."""
    distance = torch.arange(start, stop, device=device)[:, None] - torch.arange(first, stop, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _plain(query: Tensor, key: Tensor, value: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    # Where products are made in bfloat16, this one is not on a processor: its gradient takes twice the time there.
    is_reduced = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if is_reduced:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False) if is_reduced else contextlib.nullcontext():
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            is_causal=visible is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


def _capped(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, *, scale: float, cap: float) -> Tensor:
    """Return the mix with the scores written out; the heads of a group share one product with their keys."""
    batch, heads, tokens, head = query.shape
    group = heads // key.shape[1]
    stacked = query.reshape(batch, key.shape[1], group * tokens, head)
    scores = stacked @ key.transpose(2, 3)
    # In place where no gradient needs what is overwritten: scores are the largest thing here.
    scores = (
        (scores * (scale / cap)).tanh() * cap if scores.requires_grad else scores.mul_(scale / cap).tanh_().mul_(cap)
    )
    scores.view(batch, key.shape[1], group, tokens, -1).masked_fill_(~visible, -torch.inf)
    return (torch.softmax(scores, dim=-1) @ value).reshape(batch, heads, tokens, head)
