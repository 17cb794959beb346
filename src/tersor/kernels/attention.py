"""Attention of one new token to all before it, on the CPU: checks it, then hands it to the native kernel or to torch.

torch's own (scaled_dot_product_attention) is made for many queries: what one takes differs from processor to processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import ShapeError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.on_torch import kinds, on_torch
from tersor.kernels.reference import attention as definition

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["attend"]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return softmax(query · keyᵀ · scaling + mask) · value: [batch, 1, heads, width of values], in query's type.

    query    [batch, heads, 1, width] on the CPU
    key      [batch, key heads, tokens, width], of which heads is a multiple; `value` alike
    mask     [batch or 1, heads or 1, 1, tokens]: True or a number that is added where a token is seen; None: all are
    scaling  None: 1 / √width
    Sums are float32; a query that sees no token gets zeros. The number of threads changes no bit. Raises ShapeError.
    """
    _check(query, key, value, mask)
    batch, heads, _, width = query.shape
    key_heads, tokens, value_width = key.shape[1], key.shape[2], value.shape[3]
    scaling = width**-0.5 if scaling is None else scaling
    if mask is not None:
        mask = _added(mask, (batch, heads, 1, tokens))
    module, kind = on_torch(), kinds().get(query.dtype, -1)
    is_known = kind >= 0 and key.dtype == query.dtype and value.dtype == query.dtype
    if module is None or not is_known or width > module.most_width or not tokens or not batch:
        return definition.attend(query, key, value, mask, scaling)
    # a stride that is not 1 within a token, as of a transposed cache, is put right by a copy
    query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query.contiguous(), key, value))
    made = query.new_empty((batch, 1, heads, value_width))
    sizes = (batch, heads, key_heads, tokens, width, value_width, kind)
    place = (0, 0, 0) if mask is None else (mask.data_ptr(), mask.stride(0), mask.stride(1))
    keys, values = ((t.data_ptr(), *t.stride()[:3]) for t in (key, value))
    module.attend(*sizes, query.data_ptr(), *keys, *values, *place, scaling, made.data_ptr(), torch.get_num_threads())
    return made


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Raise ShapeError where keys or values do not belong to the queries: the kernel is given addresses alone."""
    away = [str(one.device) for one in (query, key, value, mask) if one is not None and not one.is_cpu]
    if away:
        raise ShapeError(f"attention is computed on the CPU, got tensors on {', '.join(away)}")
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if all(len(shape) == 4 for shape in shapes):
        (batch, heads, queries, width), (_, key_heads, tokens, _), (*of_values, _) = shapes
        is_whole = key_heads > 0 and heads % key_heads == 0 and queries == 1
        if is_whole and shapes[1] == (batch, key_heads, tokens, width) and of_values == [batch, key_heads, tokens]:
            return
    raise ShapeError(
        "attention takes one query [batch, heads, 1, width] with keys and values [batch, key heads, tokens, width], "
        f"got {shapes[0]} with {shapes[1]} and {shapes[2]}"
    )


def _added(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return what is added to scores, float32 of `shape`, the numbers of all tokens side by side."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, float("-inf"))
    if mask.dim() != 4 or any(there not in (1, wanted) for there, wanted in zip(mask.shape, shape, strict=True)):
        raise ShapeError(f"a mask of {tuple(mask.shape)} says nothing of scores {shape}")
    mask = mask.to(torch.float32)
    # of shared dimensions nothing is copied but the last: tokens have to lie side by side
    return mask.expand(*mask.shape[:3], shape[3]).contiguous().expand(shape)
