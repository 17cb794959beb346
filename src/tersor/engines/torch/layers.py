"""What a quantized matrix becomes in a model: a layer on our own kernels, or one on torch's operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from tersor.core.errors import SchemeError
from tersor.core.tensor import QuantizedTensor
from tersor.formats.hf.groups import Decoded, row_blocks, unpack_groups
from tersor.formats.integer import IntegerRules
from tersor.formats.scaled import EightBitRules
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.arena import Arena
from tersor.kernels.linear.by_torch.module import torch_linear
from tersor.kernels.linear.by_torch.products import DEQUANTIZED
from tersor.kernels.linear.by_torch.stored import Place, StoredWeight, place_of
from tersor.kernels.linear.module import join, linear_class, quantized_linear
from tersor.kernels.linear.weights import is_group, pack_weight
from tersor.kernels.reference.linear import Digits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["DECODED", "SLOW", "Activations", "Kernels", "Layers", "Made", "layers_for"]

Activations: TypeAlias = Literal["int8", "int16", "float", "rounded"]
"""What becomes of activations on their way into a quantized matrix; see `load_quantized`."""
Kernels: TypeAlias = Literal["auto", "tersor", "torch"]
DIGITS: dict[str, Digits] = {"int8": 1, "int16": 2}
ROUNDS = {"float": False, "rounded": True}
DECODED = "decoded"
"""The operator of a layer that keeps no codes: its weight was decoded when it was loaded."""
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are called one after the other with the same tensor, in the names of transformers."""
MEMBERS = frozenset(name for names in JOINED for name in names)
SLOW = frozenset({DECODED, DEQUANTIZED})
"""Operators that decode a weight, then or at every call."""


@dataclass(frozen=True, slots=True)
class Made:
    """A layer, and the name of what multiplies in it."""

    module: Any
    operator: str


class Layers(Protocol):
    """Makes layers of one kind."""

    @property
    def device(self) -> torch.device:
        """Where they compute."""

    def made(self, decoded: Decoded, bias: Tensor | None, name: str = "") -> Made | None:
        """Return the layer; None where nothing takes the codes of such a matrix.

        name  that it will have in its module
        """

    def finish(self, model: Any) -> None:
        """Have layers of a model that is complete know of one another."""


def layers_for(
    kernels: Kernels, device: str | torch.device, activations: Activations | None, *, per_token: bool
) -> Layers:
    """Return what makes the layers that options ask for.

    per_token  whether the file says that all activations of a token share a scale
    Raises SchemeError for options that do not go together, MissingError for a device that is not there.
    """
    if kernels not in ("auto", "tersor", "torch"):
        raise SchemeError(f"kernels must be auto, tersor or torch, got {kernels!r}")
    place = place_of(device)
    is_ours = kernels == "tersor" or (kernels == "auto" and place.device.type == "cpu")
    if is_ours and place.device.type != "cpu":
        raise SchemeError(f"tersor's kernels run on the CPU: leave out kernels, or take kernels='torch' on {device}")
    known = DIGITS if is_ours else ROUNDS
    if activations is not None and activations not in known:
        whose = "tersor's kernels" if is_ours else "torch's operators"
        raise SchemeError(f"on {whose} activations must be one of {', '.join(known)}, got {activations!r}")
    if is_ours:
        return _OnKernels(DIGITS[activations or "int8"], per_token)
    return _OnOperators(place, per_token if activations is None else ROUNDS[activations])


@dataclass(frozen=True, slots=True)
class _OnKernels:
    """On the integer kernels of `kernels/linear`, in memory that all layers share."""

    digits: Digits
    per_token: bool
    arena: Arena = field(default_factory=Arena)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def made(self, decoded: Decoded, bias: Tensor | None, name: str = "") -> Made | None:
        rules = _group_rules(decoded)
        if rules is None or not is_group(decoded.tensor.format.block or decoded.tensor.shape[1]):
            return None
        weight = _integers(decoded)
        arena = None if name in MEMBERS else self.arena  # what is moved once more shall leave no hole
        packed = pack_weight(
            weight.codes, _zeros(weight), weight.scales, bits=rules.bits, real=rules.scale_type, arena=arena
        )
        options: dict[str, Any] = {"digits": self.digits, "per_token": self.per_token}
        return Made(quantized_linear(packed, bias, order=_order(decoded), **options), "tersor")

    def finish(self, model: Any) -> None:
        for parent in model.modules():
            for names in JOINED:
                found = [parent._modules.get(name) for name in names]
                if all(isinstance(one, linear_class()) for one in found):
                    join(found, self.arena)


@dataclass(frozen=True, slots=True)
class _OnOperators:
    """On torch's operators, on any device."""

    place: Place
    rounded: bool

    @property
    def device(self) -> torch.device:
        return self.place.device

    def made(self, decoded: Decoded, bias: Tensor | None, name: str = "") -> Made | None:
        del name
        if _group_rules(decoded) is not None:
            weight = _integers(decoded)
        elif decoded.tensor.format.name == "fp8_e4m3" and isinstance(decoded.tensor.format.rules, EightBitRules):
            weight = _floats(decoded.tensor, decoded.tensor.format.rules)
        else:
            return None
        module = torch_linear(weight, self.place, bias, order=_order(decoded), rounded=self.rounded)
        return Made(module, module.operator)

    def finish(self, model: Any) -> None:
        del model


def _group_rules(decoded: Decoded) -> IntegerRules | None:
    """Return the rules of integers in groups or rows, None for any other format."""
    rules = decoded.tensor.format.rules
    return rules if isinstance(rules, IntegerRules) and rules.span != "tensor" else None


def _integers(decoded: Decoded) -> StoredWeight:
    """Return codes, scales and zero points of integers in groups."""
    parts = [unpack_groups(decoded.tensor, start, stop) for start, stop in row_blocks(decoded.tensor.shape)]
    codes, scales, zeros = (
        torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
        for name in ("codes", "scales", "zeros")
    )
    return StoredWeight(codes, scales, zeros, int(decoded.tensor.format.bits))


def _floats(tensor: QuantizedTensor, rules: EightBitRules) -> StoredWeight:
    """Return codes and scales of eight-bit floats: a row is a float32 and its bytes (`EightBitRules.pack`)."""
    grid, codes = rules.unpack(torch.from_numpy(tensor.data), tensor.shape[1])
    scales = torch.ones(len(codes)) if grid.scale is None else grid.scale
    return StoredWeight(codes.to(torch.uint8).view(torch.float8_e4m3fn), scales.reshape(-1, 1), None, 8)


def _zeros(weight: StoredWeight) -> Tensor:
    return torch.zeros_like(weight.scales, dtype=torch.uint8) if weight.zeros is None else weight.zeros


def _order(decoded: Decoded) -> Tensor | None:
    return None if decoded.order is None else torch.from_numpy(decoded.order)
