"""`torch.ops.tersor.linear`: the same product as an operator, for torch.compile, torch.export and training."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.weights import REALS, PackedWeight

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["register"]

_SCHEMA = (
    "linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? bias, int rows, int bits, int real, "
    "int digits, bool per_token) -> Tensor"
)


@cache
def register() -> Any:
    """Define the operator, once in a process, and return it; needed before a program of torch.export is loaded.

    linear(x, codes, scales, zeros, bias, rows, bits, real, digits, per_token): x [..., columns] to [..., rows]; the
    parts of a PackedWeight, `real` as its place in REALS, and the options of `multiply`.
    """
    library: Any = torch.library.Library("tersor", "DEF")  # type: ignore[no-untyped-call]  # torch has no types here
    library.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("linear", _on_cpu, "CPU")
    torch.library.register_fake("tersor::linear", _shaped, lib=library)
    torch.library.register_autograd("tersor::linear", _backward, setup_context=_remember, lib=library)
    _KEPT.append(library)
    return torch.ops.tersor.linear.default


_KEPT: list[Any] = []
"""A library that is let go of takes its operators along."""


def _on_cpu(  # noqa: PLR0917 (the schema)
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    rows: int,
    bits: int,
    real: int,
    digits: Any,
    per_token: bool,
) -> Tensor:
    return multiply(x, PackedWeight(rows, bits, codes, scales, REALS[real], zeros), bias, digits, per_token)


def _shaped(x: Tensor, *parts: Any) -> Tensor:
    rows: int = parts[4]
    return x.new_empty((*x.shape[:-1], rows))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (the shape torch asks for)
    _, codes, scales, zeros, bias, rows, bits, real, *_ = inputs
    ctx.save_for_backward(codes, scales, zeros)
    ctx.rows, ctx.bits, ctx.real, ctx.has_bias = rows, bits, real, bias is not None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Pass gradients straight through the rounding of activations; the weight has none."""
    codes, scales, zeros = ctx.saved_tensors
    weight = PackedWeight(ctx.rows, ctx.bits, codes, scales, REALS[ctx.real], zeros).dequantized()
    bias = gradient.reshape(-1, ctx.rows).sum(0).to(torch.float32) if ctx.has_bias else None
    return (gradient @ weight.to(gradient.dtype), None, None, None, bias, *[None] * 5)
