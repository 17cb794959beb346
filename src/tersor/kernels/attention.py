"""Attention of one new token to all before it, on the CPU: checks it, then hands it to the native kernel or to torch.

torch's own (scaled_dot_product_attention) is made for many queries, and copies keys and values where several heads
share them or their type is not the processor's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.on_torch import kinds, on_torch
from tersor.kernels.reference import attention as definition

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["attend"]

MOST_WIDTH = 512
"""Of a head in the native kernel."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return softmax(query · keyᵀ · scaling + mask) · value: [batch, 1, heads, width of values], in query's type.

    query    [batch, heads, 1, width] on the CPU
    key      [batch, key heads, tokens, width], of which heads is a multiple; `value` alike
    mask     [batch or 1, heads or 1, 1, tokens]: True or a number that is added where a token is seen; None: all are
    scaling  None: 1 / √width
    Sums are float32; a query that sees no token gets zeros. The number of threads changes no bit.
    """
    batch, heads, _, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    if mask is not None:
        mask = _added(mask)
    module, kind = on_torch(), kinds().get(query.dtype, -1)
    key_heads, tokens, value_width = key.shape[1], key.shape[2], value.shape[3]
    is_known = kind >= 0 and key.dtype == query.dtype and value.dtype == query.dtype and width <= MOST_WIDTH
    if module is None or not is_known or not tokens or not batch:
        return definition.attend(query, key, value, mask, scaling)
    # a stride that is not 1 within a token, as of a transposed cache, is put right by a copy
    query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query.contiguous(), key, value))
    made = query.new_empty((batch, 1, heads, value_width))
    sizes = (batch, heads, key_heads, tokens, width, value_width, kind)
    place = (0, 0, 0)
    if mask is not None:
        place = (mask.data_ptr(), mask.stride(0) * (len(mask) > 1), mask.stride(1) * (mask.shape[1] > 1))
    keys, values = ((t.data_ptr(), *t.stride()[:3]) for t in (key, value))
    module.attend(*sizes, query.data_ptr(), *keys, *values, *place, scaling, made.data_ptr(), torch.get_num_threads())
    return made


def _added(mask: Tensor) -> Tensor:
    """Return what is added to scores, float32, the numbers of all tokens side by side."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, float("-inf"))
    return mask.to(torch.float32).contiguous()
