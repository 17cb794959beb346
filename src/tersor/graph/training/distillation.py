"""How far what a net says is from what its teacher says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = LazyModule("torch", "torch")
    functional = LazyModule("torch.nn.functional", "torch")

__all__ = ["Distance", "divergence", "lost_energy"]

Distance: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
TINY = 1e-30
AT_ONCE = 1 << 17
"""Numbers of each side that a processor takes at a time: half a megabyte, which stays in its cache."""


def divergence(temperature: float = 1.0) -> Distance:
    """Return the Kullback-Leibler divergence of softmax at a temperature, times its square, nats an item.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    The last axis holds the classes. The gradient, once and for what was made alone, is found on the way: over large
    vocabularies the passes of a loss through memory cost more than the model's own products.
    """

    def distance(made: Tensor, taught: Tensor) -> Tensor:
        found: Tensor = _divergence().apply(made.flatten(0, -2), taught.detach().flatten(0, -2), temperature)
        return found

    return distance


def lost_energy(made: Tensor, taught: Tensor) -> Tensor:
    """Return half the energy of what answers are off by over that of the answers, for those that are no classes.

    It is the divergence of two normal distributions of the answers' width that lie as far apart, nats.
    """
    wanted = taught.detach()
    return (made - wanted).square().sum() / (2 * wanted.square().sum().clamp_min(TINY))


@functools.cache
def _divergence() -> Any:
    """Return the autograd function of (made, taught) [items, classes]; torch is loaded by now."""

    class Divergence(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, made: Tensor, taught: Tensor, temperature: float) -> Tensor:
            items, classes = made.shape
            rows = items if made.device.type != "cpu" else max(1, AT_ONCE // classes)
            slope = torch.empty_like(made) if ctx.needs_input_grad[0] else None
            total = torch.zeros((), device=made.device)
            for first in range(0, items, rows):
                part = slice(first, first + rows)
                ours = functional.log_softmax(made[part].float() / temperature, -1)
                theirs = functional.log_softmax(taught[part].float() / temperature, -1)
                wanted = theirs.exp()
                total += (wanted * theirs.sub_(ours)).sum()
                if slope is not None:
                    slope[part] = ours.exp_().sub_(wanted).mul_(temperature / items)
            if slope is not None:
                ctx.save_for_backward(slope)
            return total * (temperature**2 / items)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
            (slope,) = ctx.saved_tensors
            return slope * gradient, None, None

    return Divergence
