"""`TorchLinear`: what stands in a model in the place of torch.nn.Linear where torch's own operators multiply."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.by_torch.products import DEQUANTIZED, PRODUCTS, choose
from tersor.kernels.linear.by_torch.stored import Place, StoredWeight

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["torch_class", "torch_linear"]


def torch_linear(
    weight: StoredWeight,
    place: Place,
    bias: Tensor | None = None,
    *,
    order: Tensor | None = None,
    rounded: bool = False,
) -> Any:
    """Return a module on the device of `place` that multiplies by `weight`, with the attributes of torch.nn.Linear.

    bias     [rows]; a copy is kept in float32
    order    int64 [columns]: column j of the weight is multiplied by input order[j]; None: they are in order
    rounded  whether activations may be rounded to the kind of number that the weight has
    Its `operator` is the name of what multiplies, `reason` why nothing better does. Raises ShapeError.
    """
    if (bias is not None and bias.shape != (weight.rows,)) or (order is not None and order.shape != (weight.columns,)):
        raise ShapeError(f"bias [{weight.rows}] and order [{weight.columns}] are needed, or none")
    return torch_class()(weight, place, bias, order, rounded)


class _Linear:
    """How the module works; `torch_class` makes it one of torch's, which is not imported before it is needed."""

    def __init__(
        self, weight: StoredWeight, place: Place, bias: Tensor | None, order: Tensor | None, rounded: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.columns, weight.rows
        product, self.reason = choose(weight, place, rounded=rounded)
        self.operator, self._kind = product.name, place.device.type
        module: Any = self
        self._names = tuple(parts := product.pack(weight, place.device))
        for name, part in parts.items():
            module.register_buffer(name, part)
        kept = None if bias is None else bias.detach().to(place.device, torch.float32, copy=True)
        module.register_buffer("bias", kept)
        module.register_buffer("order", None if order is None else order.to(place.device))

    def forward(self, x: Tensor) -> Tensor:
        """Return x · weightᵀ + bias: [..., columns] to [..., rows], in the type of `x`."""
        buffers: dict[str, Any] = self._buffers  # type: ignore[attr-defined]  # of torch.nn.Module
        if x.dim() == 0 or x.shape[-1] != self.in_features or x.device.type != self._kind:
            raise ShapeError(
                f"a weight [{self.out_features}, {self.in_features}] on {self._kind} takes [..., {self.in_features}] "
                f"there, got {tuple(x.shape)} on {x.device}"
            )
        if x.requires_grad and torch.is_grad_enabled() and self.operator != DEQUANTIZED:
            raise UnsupportedError(
                f"{self.operator} has no gradient: run it under torch.no_grad(), or train on kernels='tersor'"
            )
        if buffers["order"] is not None:
            x = x.index_select(-1, buffers["order"])
        tokens = x.reshape(-1, self.in_features)
        if len(tokens):
            made = PRODUCTS[self.operator].multiply(tokens, {name: buffers[name] for name in self._names})
        else:
            made = tokens.new_empty(0, self.out_features)
        if buffers["bias"] is not None:
            made = made.to(torch.float32) + buffers["bias"]
        return made.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but keep types, and stay on the kind of device that the codes are packed for."""

        def kept(part: Tensor) -> Tensor:
            moved = function(part)
            if moved.device.type != self._kind and self.operator != DEQUANTIZED:
                raise UnsupportedError(
                    f"codes of {self.operator} are packed for {self._kind}: load the checkpoint with "
                    f"device={moved.device.type!r}"
                )
            return moved if moved.dtype == part.dtype else part.to(moved.device)

        done: Any = super()._apply(kept, recurse)  # type: ignore[misc]  # of torch.nn.Module
        self._kind = next(iter(done.buffers())).device.type
        return done

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        told = f"in_features={self.in_features}, out_features={self.out_features}, operator={self.operator}"
        return f"{told}, reason={self.reason!r}" if self.operator == DEQUANTIZED else told


@cache
def torch_class() -> type[Any]:
    """The class of these modules, for isinstance."""
    name = "TorchLinear"
    return type(name, (_Linear, torch.nn.Module), {"__module__": __name__, "__doc__": _Linear.__doc__})


def __getattr__(name: str) -> Any:
    if name == "TorchLinear":  # where pickle looks for the class
        return torch_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
