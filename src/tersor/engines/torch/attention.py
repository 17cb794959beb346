"""Attention of one new token to all before it, on the CPU: as two small products in float32.

torch's own (scaled_dot_product_attention) is made for many queries. With one, in bfloat16, each layer takes it 3 ms for
300 tokens and 20 ms for 1500, where the products take 0.1 and 1: more than all matrices of a layer on 4 bits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")
    transformers = LazyModule("transformers", "torch")

__all__ = ["attend_by_products"]

NAME, REPLACED = "tersor", "sdpa"
ODD = ("position_bias", "cache", "softcap", "s_aux")
"""Options of attention that are left to others."""


def attend_by_products(model: Any) -> bool:
    """Have a model of transformers attend so wherever there is one query a sequence; False where it cannot be told to.

    Prompts, gradients, programs of torch.compile and other devices go on as before, and so does a model that was asked
    for another attention than transformers takes by itself.
    """
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) != REPLACED or _registered() is None:
        return False
    model.set_attn_implementation(NAME)
    return bool(config._attn_implementation == NAME)


@cache
def _registered() -> Any:
    """Tell transformers of it, once; None where its version knows no attention but its own."""
    try:
        from transformers import AttentionInterface, PreTrainedModel  # noqa: PLC0415 (versions differ)
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask  # noqa: PLC0415
    except ImportError:
        return None
    if not hasattr(PreTrainedModel, "set_attn_implementation"):
        return None

    def forward(  # noqa: PLR0917 (the shape transformers asks for)
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        is_one = query.shape[2] == 1 and query.device.type == "cpu" and not dropout
        is_plain = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        if is_one and is_plain and all(more.get(name) is None for name in ODD):
            return attended(query, key, value, attention_mask, scaling), None
        made: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return made

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return forward


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return softmax(query · keyᵀ · scaling + mask) · value: [batch, 1, heads, width of values], in query's type.

    query    [batch, heads, 1, width]
    key      [batch, key heads, tokens, width], of which heads is a multiple; `value` alike
    mask     [batch or 1, heads or 1, 1, tokens]: True or 0 where a token is seen; None: all are
    scaling  None: 1 / √width
    """
    batch, heads, _, width = query.shape
    shape = (batch, key.shape[1], heads // key.shape[1], -1)
    scores = query.reshape(shape).to(torch.float32) * (width**-0.5 if scaling is None else scaling)
    scores = scores @ key.to(torch.float32).transpose(-1, -2)
    if mask is not None:
        if mask.shape[1] > 1:
            mask = mask.expand(batch, -1, -1, -1).reshape(shape)
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
        else:
            scores = scores + mask
    made = torch.softmax(scores, -1) @ value.to(torch.float32)
    return made.reshape(batch, 1, heads, -1).to(query.dtype)
