"""What a method is to those who call it: a function, and the statistics that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tersor.core.tensor import QuantizedTensor

__all__ = ["Method"]


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table of rounding methods.

    function  (weight, fmt, *, needs, options) → QuantizedTensor
    needs     statistics that it cannot do without, by the names of its arguments: hessian, cross
    uses      statistics that make it better: importance, cross, residual
    """

    function: Callable[..., QuantizedTensor]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
