"""Models of transformers whose new token attends to those before it by our kernel, on the CPU.

torch's own attention is made for many queries: how it takes one, in bfloat16, differs from processor to processor, up
to more than all matrices of a layer on 4 bits take.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from tersor.kernels.attention import attend
from tersor.kernels.lazy import LazyModule
from tersor.kernels.on_torch import kinds

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")
    transformers = LazyModule("transformers", "torch")

__all__ = ["attend_by_kernel"]

NAME, REPLACED = "tersor", "sdpa"
_COMPARED = re.compile(r"_attn_implementation\s*(==|!=|in\b|not in\b)")
ODD = ("position_bias", "cache", "softcap", "s_aux")
"""Options of attention that are left to others."""


def attend_by_kernel(model: Any) -> bool:
    """Have a model of transformers attend so wherever there is one query a sequence; False where it cannot be told to.

    Prompts, gradients, programs of torch.compile and other devices go on as before, and so does a model that was asked
    for another attention than transformers takes by itself, or whose own code goes by the name of that: some leave out
    tokens only where it is called "sdpa".
    """
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) != REPLACED or _asks_for_the_name(model) or _registered() is None:
        return False
    model.set_attn_implementation(NAME)
    return bool(config._attn_implementation == NAME)


def _asks_for_the_name(model: Any) -> bool:
    """Whether the code of a model compares the name of its attention with others."""
    try:
        source = inspect.getsource(sys.modules[type(model).__module__])
    except (KeyError, OSError, TypeError):  # written in no file: nothing is known of it
        return True
    return _COMPARED.search(source) is not None


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
        is_traced = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]  # torch has no types here
        is_watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or is_traced
        is_plain = not is_watched and query.dtype in kinds()
        if is_one and is_plain and all(more.get(name) is None for name in ODD):
            return attend(query, key, value, attention_mask, scaling), None
        made: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return made

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return forward
