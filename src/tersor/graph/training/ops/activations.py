"""Functions of one value, and softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import Number
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = [
    "celu", "clip", "elu", "gelu", "hard_sigmoid", "hard_swish", "leaky_relu", "log_softmax", "mish", "prelu", "selu",
    "softmax", "softplus", "softsign", "swish", "thresholded_relu",
]  # fmt: skip


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Values above zero, and `alpha` times those below."""
    return functional.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Values above zero, and `slope` times those below."""
    return torch.where(x < 0, x * slope, x)


def clip(x: Tensor, low: Number | None = None, high: Number | None = None) -> Tensor:
    """Values moved into the range; an end that is not given is open."""
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)  # type: ignore[arg-type]  # torch declares pairs of numbers and of tensors apart


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Line through (0, beta) with slope alpha, cut off at 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def hard_swish(x: Tensor) -> Tensor:
    """Value times its hard sigmoid with slope 1/6."""
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Values above zero, and `alpha` (e^x - 1) below."""
    return functional.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Values above zero, and `alpha` (e^(x / alpha) - 1) below."""
    return functional.celu(x, alpha)


def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """`gamma` times ELU."""
    return gamma * functional.elu(x, alpha)


def softplus(x: Tensor) -> Tensor:
    """Logarithm of 1 + e^x."""
    return functional.softplus(x)


def softsign(x: Tensor) -> Tensor:
    """Value over 1 + its size."""
    return functional.softsign(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Value times the normal distribution at it, exact or through tanh."""
    return functional.gelu(x, approximate=approximate)


def mish(x: Tensor) -> Tensor:
    """Value times the tanh of its softplus."""
    return functional.mish(x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Value times the sigmoid of `alpha` times it."""
    return x * torch.sigmoid(alpha * x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Values above `alpha`, and zero."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Exponentials over their sum along the axis."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of softmax."""
    return torch.log_softmax(x, axis)
