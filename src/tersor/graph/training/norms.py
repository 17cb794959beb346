"""Batch norms in training on integers: the weight is rounded as the engine will have it, with the norm folded in.

Source: Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2: weights are folded by the running statistics, so that
their grid does not jump from batch to batch; until the norms are frozen, what comes out is normalized by the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tersor.graph.training.ops.layers import conv
from tersor.graph.training.ops.normalization import batch_norm
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = ["conv_norm", "folded_bias", "folded_weight", "freeze_norms", "norm_factor"]


def norm_factor(gamma: Tensor, var: Tensor, epsilon: float) -> Tensor:
    """Return what a norm at rest multiplies each channel by."""
    return gamma * torch.rsqrt(var + epsilon)


def folded_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """Return the weight of a convolution with its norm in it."""
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def folded_bias(factor: Tensor, beta: Tensor, mean: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the bias of a convolution with its norm in it."""
    return beta + ((0 if bias is None else bias) - mean) * factor


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    factor: Tensor,
    norm: tuple[Tensor, Tensor, Tensor, Tensor],
    own_bias: Tensor | None,
    epsilon: float,
    momentum: float,
    training: bool,
    **attributes: Any,
) -> Tensor:
    """Return convolution and norm: as the engine computes it, or in training by the statistics of the batch.

    weight, bias  folded and rounded; in training the factor is taken out again, and a channel without one stays zero
    norm          scale, bias, running mean and variance
    own_bias      of the convolution before folding
    """
    if not training:
        return conv(x, weight, bias, **attributes)
    made = conv(x, weight, None, **attributes)
    shape = (-1, *[1] * (made.ndim - 2))
    made = made / torch.where(factor == 0, 1, factor).reshape(shape)
    if own_bias is not None:
        made = made + own_bias.reshape(shape)
    gamma, beta, mean, var = norm
    return functional.batch_norm(made, mean, var, gamma, beta, True, 1 - momentum, epsilon)


def freeze_norms(module: fx.GraphModule) -> int:
    """Let every batch norm use its stored statistics in training too, for good; return how many did not before."""
    frozen = 0
    for node in module.graph.nodes:
        if node.target in (conv_norm, batch_norm) and node.kwargs["training"] is not False:
            node.kwargs = {**node.kwargs, "training": False}
            frozen += 1
    if frozen:
        module.recompile()
    return frozen
