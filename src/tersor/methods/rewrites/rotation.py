"""Hadamard rotation: spread outliers over all columns by an orthogonal matrix, folded into the weights around it.

Source: Ashkboos et al. 2024 (QuaRot), arXiv:2404.00456; block-wise where the size is no power of two.
A rewrite: the function of the model stays. Only for streams with nothing but linear layers (and norms whose weight was
folded away) between two rotations; the caller knows where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError, ShapeError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["rotated_inputs", "rotated_outputs", "rotation"]


def rotation(size: int, *, seed: int = 0) -> Tensor:
    """Orthogonal float64 [size, size]: random signs, then Hadamard blocks of the power of two that divides size."""
    if size < 1:
        raise SchemeError(f"a rotation needs at least one column, got {size}")
    block = size & -size
    hadamard = torch.ones((1, 1), dtype=torch.float64)
    while len(hadamard) < block:
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)))
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.float64) * 2 - 1
    whole = torch.kron(torch.eye(size // block, dtype=torch.float64), hadamard / block**0.5)
    return whole * signs


def rotated_inputs(weight: Tensor, turn: Tensor) -> Tensor:
    """The weight [out, in] for an input that was rotated, x → turn · x: W · turnᵀ, computed in float64, float32."""
    _check(weight.shape[1], turn)
    return (weight.double() @ turn.to(weight.device).T).to(torch.float32)


def rotated_outputs(producer: Tensor, turn: Tensor) -> Tensor:
    """A matrix [in, …] or bias [in] whose outputs are rotated: turn · W, computed in float64, float32.

    Each weight is rounded once: outputs stay within 2⁻²³ of Σ|w||x| in exact arithmetic.
    """
    _check(producer.shape[0], turn)
    return (turn.to(producer.device) @ producer.double()).to(torch.float32)


def _check(size: int, turn: Tensor) -> None:
    if turn.shape != (size, size):
        raise ShapeError(f"{size} columns need a rotation [{size}, {size}], got {tuple(turn.shape)}")
