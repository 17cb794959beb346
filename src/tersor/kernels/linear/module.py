"""`QuantizedLinear`: what stands in a model in the place of torch.nn.Linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.arena import LINE, Arena
from tersor.kernels.linear.joint import Joint, can_watch, joined
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.operators import register
from tersor.kernels.linear.weights import REALS, PackedWeight
from tersor.kernels.reference.linear import Digits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["join", "quantized_linear"]


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


def join(modules: Sequence[torch.nn.Module], arena: Arena | None = None) -> bool:
    """Have layers that one module of a model calls in this order with the same tensor multiply a single token together.

    arena  memory for their weights, which become parts of one
    False where they do not go together: other groups, bits, kinds of scales, columns in another order.
    """
    layers: list[Any] = list(modules)
    size = sum(layer._packed.nbytes for layer in layers)
    made = len({(layer.digits, layer.per_token) for layer in layers}) == 1 and joined(
        [layer._packed for layer in layers],
        [layer.bias for layer in layers],
        [layer.order for layer in layers],
        digits=layers[0].digits,
        per_token=layers[0].per_token,
        arena=arena or Arena(size + 4 * LINE),
    )
    if not made:
        return False
    joint, weights = made
    for seat, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
        layer._sit(joint, seat, weight)
    return True


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
        self._joint: Joint | None = None
        self._bias: Tensor | None = None
        self._seat = 0
        register()

    def forward(self, x: Tensor) -> Tensor:
        """Return x · weightᵀ + bias: [..., columns] to [..., rows], in the type of `x`."""
        parts: dict[str, Any] = self._buffers  # type: ignore[attr-defined]  # of torch.nn.Module
        if self._joint is not None and self._is_joined(x, parts):
            return self._joint.part(self._seat, x)
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

    def _sit(self, joint: Joint, seat: int, weight: PackedWeight) -> None:
        """Make its weight the part of `joint` that it is."""
        module: Any = self
        module.codes, module.scales, module.zeros = weight.codes, weight.scales, weight.zeros
        self._packed, self._of, self._bias = weight, weight.codes, module.bias
        self._joint, self._seat = joint, seat

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Be cast with the model, but stay on the CPU: the kernels run nowhere else."""

        def kept(part: Tensor) -> Tensor:
            moved = function(part)
            if not moved.is_cpu:
                raise UnsupportedError(
                    f"tersor's kernels run on the CPU: load the checkpoint with device={moved.device.type!r}"
                )
            return moved

        return super()._apply(kept, recurse)  # type: ignore[misc]  # of torch.nn.Module

    def _load_from_state_dict(self, *given: Any, **more: Any) -> None:
        """Leave the others: they may be given another order, or other biases."""
        self._joint = None
        super()._load_from_state_dict(*given, **more)  # type: ignore[misc]  # of torch.nn.Module

    def _is_joined(self, x: Tensor, parts: dict[str, Any]) -> bool:
        """Whether the joint product gives the same: one token as it is, and the module's own numbers as they were."""
        return (
            x.numel() == self.in_features == x.shape[-1]
            and self._of is parts["codes"]
            and self._bias is parts["bias"]
            and type(x) is torch.Tensor
            and not (torch.compiler.is_compiling() or torch.is_grad_enabled())
            and can_watch(x)
        )

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
