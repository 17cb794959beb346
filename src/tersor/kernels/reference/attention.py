"""The definition of attention of one token to all before it: two products in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["attend"]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return softmax(query · keyᵀ · scaling + mask) · value: [batch, 1, heads, width of values], in query's type.

    query  [batch, heads, 1, width]
    key    [batch, key heads, tokens, width], of which heads is a multiple; `value` alike
    mask   [batch, heads, 1, tokens], added to scores; None: all tokens are seen
    """
    batch, heads, _, width = query.shape
    shape = (batch, key.shape[1], heads // key.shape[1])
    scores = query.reshape(*shape, width).to(torch.float32) * scaling
    scores = scores @ key.to(torch.float32).transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.reshape(*shape, key.shape[2])
    sees_nothing = (scores == float("-inf")).all(-1, keepdim=True)  # its weights are 0, not 0 / 0
    made = torch.softmax(scores, -1).masked_fill(sees_nothing, 0.0) @ value.to(torch.float32)
    return made.reshape(batch, 1, heads, value.shape[3]).to(query.dtype)
