"""Values brought to a mean and a spread, and dropout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import Number
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = ["batch_norm", "dropout", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training: bool,
) -> Tensor:
    """Normalize every channel: by the stored statistics, or in training by those of the batch, which are then stored.

    momentum  share of the old statistics that is kept
    """
    return functional.batch_norm(x, mean, var, scale, bias, training, 1 - momentum, epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    """Normalize over the axes from `axis` on."""
    normal = list(x.shape[axis:])
    if list(scale.shape) == normal and (bias is None or list(bias.shape) == normal):
        return functional.layer_norm(x, normal, scale, bias, epsilon)
    made = functional.layer_norm(x, normal, None, None, epsilon) * scale
    return made if bias is None else made + bias


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    """Divide by the root of the mean square over the axes from `axis` on."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalize every channel of every item."""
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int) -> Tensor:
    """Normalize groups of channels; scale and bias are per group before opset 21, per channel since."""
    each = math.ceil(x.shape[1] / scale.numel())
    return torch.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def dropout(x: Tensor, ratio: Number = 0.5, _mode: object = None, *, training: bool) -> Tensor:
    """Zero a share of the values in training, and scale the others up."""
    return functional.dropout(x, float(ratio), training)
