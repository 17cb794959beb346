"""How far what a net says is from what its teacher says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import functional
else:
    functional = LazyModule("torch.nn.functional", "torch")

__all__ = ["Distance", "divergence", "squared_error"]

Distance: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


def divergence(temperature: float = 1.0) -> Distance:
    """Return the Kullback-Leibler divergence of softmax at a temperature, times its square, nats an item.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    The last axis holds the classes.
    """

    def distance(made: Tensor, taught: Tensor) -> Tensor:
        ours = functional.log_softmax(made.flatten(0, -2) / temperature, -1)
        theirs = functional.log_softmax(taught.flatten(0, -2) / temperature, -1)
        return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2

    return distance


def squared_error(made: Tensor, taught: Tensor) -> Tensor:
    """Return the mean squared error as a share of the teacher's mean square."""
    return functional.mse_loss(made, taught) / taught.square().mean().clamp_min(1e-12)
