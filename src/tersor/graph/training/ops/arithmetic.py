"""Sums, products, powers, and what compares or casts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import torch_type
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["cast", "cast_like", "divide", "greatest", "identity", "least", "mean", "modulo", "power", "total"]


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotient; that of integers is cut towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of the divisor, or with that of the dividend."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def power(a: Tensor, b: Tensor) -> Tensor:
    """Power in the type of its base."""
    return torch.pow(a, b).to(a.dtype)


def greatest(*values: Tensor) -> Tensor:
    """Largest of the values, place by place."""
    return functools.reduce(torch.maximum, values)


def least(*values: Tensor) -> Tensor:
    """Smallest of the values, place by place."""
    return functools.reduce(torch.minimum, values)


def total(*values: Tensor) -> Tensor:
    """Sum of the values, place by place."""
    return functools.reduce(torch.add, values)


def mean(*values: Tensor) -> Tensor:
    """Mean of the values, place by place."""
    return total(*values) / len(values)


def identity(x: Tensor) -> Tensor:
    """The value itself."""
    return x


def cast(x: Tensor, *, to: int) -> Tensor:
    """Value as another type."""
    dtype = torch_type(to)
    assert dtype is not None  # the table refuses the others
    return x.to(dtype)


def cast_like(x: Tensor, like: Tensor) -> Tensor:
    """Value as the type of another."""
    return x.to(like.dtype)
