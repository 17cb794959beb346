"""`QuantizedLinear`: what stands in a model in the place of torch.nn.Linear."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tersor.core.errors import ShapeError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.operators import register
from tersor.kernels.linear.weights import REALS, PackedWeight
from tersor.kernels.reference.linear import Digits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["quantized_linear"]


def quantized_linear(
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    order: Tensor | None = None,
    digits: Digits = 1,
    per_token: bool = False,
) -> torch.nn.Module:
    """Return a module that multiplies by `weight`, with the attributes of torch.nn.Linear but for its weight.

    bias       [rows]; a copy is kept in float32
    order      int64 [columns]: column j of the weight is multiplied by input order[j]; None: they are in order
    digits     bytes of the codes that activations are rounded to: 1 is fastest, 2 loses next to nothing
    per_token  whether a token's activations share one scale
    """
    if (bias is not None and bias.shape != (weight.rows,)) or (order is not None and order.shape != (weight.columns,)):
        raise ShapeError(f"bias [{weight.rows}] and order [{weight.columns}] are needed, or none")
    module: torch.nn.Module = linear_class()(weight, bias, order, digits, per_token)
    return module


class _Linear:
    """How the module works; `linear_class` makes it one of torch's, which is not imported before it is needed."""

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None, order: Tensor | None, digits: Digits, per_token: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.columns, weight.rows
        self.bits, self.real, self.digits, self.per_token = weight.bits, weight.real, digits, per_token
        module: Any = self
        module.register_buffer("codes", weight.codes)
        module.register_buffer("scales", weight.scales)
        module.register_buffer("zeros", weight.zeros)
        module.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32, copy=True))
        module.register_buffer("order", order)
        self._packed, self._of = weight, weight.codes
        register()

    def forward(self, x: Tensor) -> Tensor:
        """Return x · weightᵀ + bias: [..., columns] to [..., rows], in the type of `x`."""
        parts: dict[str, Any] = self._buffers  # type: ignore[attr-defined]  # of torch.nn.Module
        if parts["order"] is not None:
            x = x.index_select(-1, parts["order"])
        if (
            torch.compiler.is_compiling()
            or type(x) is not torch.Tensor
            or (x.requires_grad and torch.is_grad_enabled())
        ):
            options = (self.out_features, self.bits, REALS.index(self.real), self.digits, self.per_token)
            arrays = (x, parts["codes"], parts["scales"], parts["zeros"], self._float_bias(parts))
            made: Tensor = torch.ops.tersor.linear.default(*arrays, *options)
            return made
        if self._of is not parts["codes"]:  # the module was moved or loaded anew
            weight = PackedWeight(
                self.out_features, self.bits, parts["codes"], parts["scales"], self.real, parts["zeros"]
            )
            self._packed, self._of = weight, weight.codes
        return multiply(x, self._packed, self._float_bias(parts), self.digits, self.per_token)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"groups={self._packed.groups}, digits={self.digits}, per_token={self.per_token}"
        )

    @staticmethod
    def _float_bias(parts: dict[str, Any]) -> Tensor | None:
        bias: Tensor | None = parts["bias"]
        return bias if bias is None else bias.to(torch.float32)  # a cast of the whole model casts it, too


@cache
def linear_class() -> type[Any]:
    """The class of these modules, for isinstance."""
    name = "QuantizedLinear"
    return type(name, (_Linear, torch.nn.Module), {"__module__": __name__, "__doc__": _Linear.__doc__})


def __getattr__(name: str) -> Any:
    if name == "QuantizedLinear":  # where pickle looks for the class
        return linear_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
