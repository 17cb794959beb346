"""SmoothQuant: move what is hard to quantize from the activations into the weights; and how scales are folded.

Source: Xiao et al. 2022, arXiv:2211.10438. A rewrite: the function of the model stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["divided_outputs", "input_scales", "scaled_columns"]

LEAST = 1e-5


def input_scales(weights: Sequence[Tensor], *, largest_input: Tensor, strength: float = 0.5) -> Tensor:
    """Scales of the input columns, float32 [in] > 0: max|x|^strength / max|w|^(1 - strength).

    weights        matrices [out, in] float32 that read the same input; not modified
    largest_input  [in] float32 ≥ 0, largest magnitude of each input over calibration tokens
    strength       share of the difficulty that moves into the weights, 0 … 1
    Columns that never saw an input, or have no weight, keep 1.
    """
    if not weights or not 0 <= strength <= 1:
        raise SchemeError(f"SmoothQuant needs a weight, and a strength between 0 and 1, got {strength}")
    columns = weights[0].shape[1]
    if largest_input.shape != (columns,) or any(weight.shape[1] != columns for weight in weights):
        raise ShapeError(f"weights and inputs differ: {columns} columns, inputs {tuple(largest_input.shape)}")
    if not bool((largest_input.isfinite() & (largest_input >= 0)).all()):
        raise FormatError("largest inputs must be finite and not negative: calibrate again")
    largest_weight = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    scales = largest_input.clamp(min=LEAST).pow(strength) / largest_weight.clamp(min=LEAST).pow(1 - strength)
    alive = (largest_input > 0) & (largest_weight > 0)
    return torch.where(alive, scales.clamp(min=LEAST), torch.ones_like(scales)).to(torch.float32)


def scaled_columns(weight: Tensor, scales: Tensor) -> Tensor:
    """The weight [out, in] for an input that was divided by the scales [in]."""
    if scales.shape != (weight.shape[1],):
        raise ShapeError(f"{weight.shape[1]} columns need as many scales, got {tuple(scales.shape)}")
    return weight * scales


def divided_outputs(producer: Tensor, scales: Tensor) -> Tensor:
    """What produces the input, divided by the scales: a matrix [in, …], a norm's weight or a bias [in].

    Weights change by one rounding each way: outputs stay within 2⁻²² of Σ|w||x| in float32.
    """
    if producer.shape[0] != len(scales):
        raise ShapeError(f"a producer of {producer.shape[0]} outputs cannot be divided by {len(scales)} scales")
    return producer / scales.reshape(-1, *[1] * (producer.ndim - 1))
