"""What torch can multiply quantized matrices with: one row an operator, its rules, and how it is fed.

Source: the checks of torch 2.13 (`torch/_meta_registrations.py`, ATen's `Blas.cpp`, `int4mm.cu`, `int8mm.cu` and their
counterparts for processors). Differs: `_weight_int8pack_mm` reads past the end of a row of bfloat16 on a processor
where columns are no multiple of 16, and is not asked to; nor is any operator under AMD's ROCm, which nobody here tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.by_torch.stored import Place, StoredWeight
from tersor.kernels.reference.arithmetic import constant, divided
from tersor.kernels.reference.linear import SMALLEST, quantize_activations

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["DEQUANTIZED", "PRODUCTS", "Parts", "Product", "choose", "quantize_to_floats"]

Parts: TypeAlias = Mapping[str, "Tensor"]
"""A weight as an operator wants it: name → tensor."""

DEQUANTIZED = "dequantized"
FLOAT8_TOP = 448.0
"""The largest number of float8_e4m3fn."""
INT4_GROUPS = (256, 128, 64, 32)
INT4_TILES = (8, 4, 2)
"""Tiles of 16 columns that a weight of 4 bits is packed by on CUDA."""
ENOUGH_TOKENS = {"cuda": 32}
"""Device → tokens that `_int_mm` is given at least: cuBLAS wants more than 16. Tokens of zeros change no other."""
INT4_TYPES = {"cuda": "bfloat16", "cpu": "float32"}
"""Device → the type that `_weight_int4pack_mm` reads scales and activations in. Processors take others as well."""


@dataclass(frozen=True, slots=True)
class Product:
    """A way of multiplying.

    name      of torch's operator
    rounds    what activations are rounded to, a scale for each token; "": they stay as they are
    refusal   (weight, place) → why it does not take the weight there; "": it does
    pack      (weight, device) → what it needs of the weight
    multiply  (x [tokens, columns], parts) → [tokens, rows] in a float type of its own; x has a token at least
    """

    name: str
    rounds: str
    refusal: Callable[[StoredWeight, Place], str]
    pack: Callable[[StoredWeight, torch.device], dict[str, Tensor]]
    multiply: Callable[[Tensor, Parts], Tensor]


def choose(weight: StoredWeight, place: Place, *, rounded: bool) -> tuple[Product, str]:
    """Return the first product that takes the weight at the place, and why the ones that suit it better do not.

    rounded  whether activations may be rounded, to the kind of number that the weight has
    """
    reasons: list[str] = []
    for product in PRODUCTS.values():
        if product.rounds and not rounded:
            continue
        reason = product.refusal(weight, place)
        if not reason:
            return product, "; ".join(reasons)
        reasons.append(f"{product.name}: {reason}")
    return PRODUCTS[DEQUANTIZED], "; ".join(reasons)


def quantize_to_floats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to eight-bit floats, each token on a scale of its own.

    x  float [tokens, columns]
    Returns codes, float8_e4m3fn [tokens, columns], and scales, float32 [tokens, 1]; the scale of a token with NaN or an
    infinity is NaN, that of zeros is 0.

    >>> codes, scale = quantize_to_floats(torch.tensor([[896.0, -2.0]]))
    >>> codes.float().tolist(), scale.tolist()
    ([[448.0, -1.0]], [[2.0]])
    """
    wide = x.to(torch.float32)
    largest = wide.abs().amax(1, keepdim=True)
    usable = (largest >= SMALLEST) & (largest < torch.inf)
    scale = torch.where(usable, largest / constant(FLOAT8_TOP, largest), largest * 0)
    inverse = torch.where(usable, divided(FLOAT8_TOP, largest), 0)
    codes = torch.where(usable, wide * inverse, 0).clamp(-FLOAT8_TOP, FLOAT8_TOP)
    return codes.to(torch.float8_e4m3fn), scale


def _refused_integers(weight: StoredWeight, place: Place) -> str:
    """Say what all operators for bytes ask."""
    if weight.is_float or weight.bits != 8:
        return "takes integers of 8 bits"
    if weight.groups > 1 or not weight.is_symmetric:
        return "takes one scale a row, without zero points"
    return _refused_device(place, (7, 5))


def _refused_device(place: Place, capability: tuple[int, int]) -> str:
    if place.device.type == "cpu":
        return ""
    if place.device.type != "cuda":
        return f"not tried on {place.device.type}"
    if place.capability is None:
        return "not tried under ROCm"
    there, needed = (".".join(map(str, one)) for one in (place.capability, capability))
    return "" if place.capability >= capability else f"needs compute capability {needed}, the device has {there}"


def _refused_sizes(weight: StoredWeight, rows: int, columns: int) -> str:
    if weight.rows % rows or weight.columns % columns:
        return f"takes rows in steps of {rows} and columns of {columns}, not {weight.rows} × {weight.columns}"
    return ""


def _signed(weight: StoredWeight, device: torch.device) -> dict[str, Tensor]:
    """Return int8 codes [rows, columns] and float32 scales [rows]."""
    codes = (weight.codes ^ 0x80).view(torch.int8)
    return {"codes": codes.to(device), "scales": weight.scales[:, 0].contiguous().to(device)}


def _int_mm_refusal(weight: StoredWeight, place: Place) -> str:
    steps = (8, 8) if place.device.type == "cuda" else (1, 1)
    return _refused_integers(weight, place) or _refused_sizes(weight, *steps)


def _int_mm(x: Tensor, parts: Parts) -> Tensor:
    """Multiply exactly, integers by integers; then two scales, one rounding each."""
    codes, steps = quantize_activations(x, x.shape[1], 1)
    tokens = len(codes)
    missing = max(0, ENOUGH_TOKENS.get(x.device.type, 0) - tokens)
    padded = torch.nn.functional.pad(codes.to(torch.int8), (0, 0, 0, missing))
    product = torch._int_mm(padded, parts["codes"].t())[:tokens]
    return product.to(torch.float32) * (parts["scales"] * steps)


def _scaled_mm_refusal(weight: StoredWeight, place: Place) -> str:
    if not weight.is_float:
        return "takes eight-bit floats"
    if weight.groups > 1:
        return "takes one scale a row or one for all"
    steps = (16, 16) if place.device.type == "cuda" else (1, 1)
    return _refused_device(place, (8, 9)) or _refused_sizes(weight, *steps)


def _floats(weight: StoredWeight, device: torch.device) -> dict[str, Tensor]:
    """Return codes, and scales [1, rows], or [1, 1] where all rows have one."""
    scales = weight.scales[:, 0]
    scales = scales[:1] if bool((scales == scales[0]).all()) else scales
    return {"codes": weight.codes.to(device), "scales": scales.reshape(1, -1).contiguous().to(device)}


def _scaled_mm(x: Tensor, parts: Parts) -> Tensor:
    """Multiply with scales of both sides inside, or, where the weight has one, with those of tokens afterwards.

    So a token's answer depends on no other token in either case. CUDA gives rows of scales in bfloat16 alone.
    """
    codes, steps = quantize_to_floats(x)
    weight, scales = parts["codes"].t(), parts["scales"]
    if scales.numel() == 1:
        one = torch.ones((), device=x.device)
        return torch._scaled_mm(codes, weight, one, scales.reshape(()), out_dtype=torch.float32) * steps
    made = torch.bfloat16 if x.device.type == "cuda" else torch.float32
    return torch._scaled_mm(codes, weight, steps, scales, out_dtype=made)


def _int8pack_refusal(weight: StoredWeight, place: Place) -> str:
    steps = (1, 16) if place.device.type == "cpu" else (1, 1)
    return _refused_integers(weight, place) or _refused_sizes(weight, *steps)


def _int8pack(x: Tensor, parts: Parts) -> Tensor:
    """Multiply activations as they are; in float32, for in narrower types processors round the scales, too."""
    return torch._weight_int8pack_mm(x.to(torch.float32), parts["codes"], parts["scales"])


def _int4_refusal(weight: StoredWeight, place: Place) -> str:
    if weight.is_float or weight.bits > 4:
        return "takes integers of up to 4 bits"
    if not _int4_group(weight):
        return f"takes groups that are multiples of {INT4_GROUPS[-1]}, not of {weight.columns // weight.groups}"
    steps = (8, 16 * INT4_TILES[-1]) if place.device.type == "cuda" else (16, 2)
    return _refused_device(place, (8, 0)) or _refused_sizes(weight, *steps)


def _int4_group(weight: StoredWeight) -> int:
    """Return the largest group of the operator that divides those of the weight; 0: none does."""
    width = weight.columns // weight.groups
    return next((group for group in INT4_GROUPS if width % group == 0), 0)


def _int4(weight: StoredWeight, device: torch.device) -> dict[str, Tensor]:
    """Return packed codes, and pairs of a scale and of what a code of 8 stands for: [groups, rows, 2]."""
    repeats = weight.columns // weight.groups // _int4_group(weight)
    zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros.to(torch.float32)
    offsets = (8 - zeros) * weight.scales
    pairs = torch.stack((weight.scales, offsets), 2).repeat_interleave(repeats, 1).transpose(0, 1)
    pairs = pairs.to(getattr(torch, INT4_TYPES[device.type])).contiguous().to(device)
    if device.type == "cpu":
        return {"codes": torch._convert_weight_to_int4pack_for_cpu(weight.codes.to(torch.int32), 1), "scales": pairs}
    halves = (weight.codes[:, ::2] << 4 | weight.codes[:, 1::2]).contiguous().to(device)
    tiles = next(count for count in INT4_TILES if weight.columns % (16 * count) == 0)
    return {"codes": torch._convert_weight_to_int4pack(halves, tiles), "scales": pairs}


def _int4pack(x: Tensor, parts: Parts) -> Tensor:
    """Multiply activations in the type of the scales."""
    scales = parts["scales"]
    is_cpu = x.device.type == "cpu"
    run = torch.ops.aten._weight_int4pack_mm_for_cpu if is_cpu else torch.ops.aten._weight_int4pack_mm
    made: Tensor = run(x.to(scales.dtype).contiguous(), parts["codes"], x.shape[1] // len(scales), scales)
    return made


def _compact(weight: StoredWeight, device: torch.device) -> dict[str, Tensor]:
    """Return codes, two a byte where they fit, scales and zeros."""
    codes, fits = weight.codes, not weight.is_float and weight.bits <= 4 and weight.columns % 2 == 0
    parts = {"codes": codes[:, ::2] << 4 | codes[:, 1::2] if fits else codes, "scales": weight.scales}
    parts |= {} if weight.zeros is None else {"zeros": weight.zeros}
    return {name: part.contiguous().to(device) for name, part in parts.items()}


def _dequantized(x: Tensor, parts: Parts) -> Tensor:
    """Decode the whole weight, then multiply in the type of `x`: on every device, at the price of both."""
    codes, scales = parts["codes"], parts["scales"]
    if codes.shape[1] != x.shape[1]:
        codes = torch.stack((codes >> 4, codes & 15), 2).reshape(len(codes), -1)
    levels = codes.to(torch.float32).reshape(*scales.shape, -1)
    if "zeros" in parts:
        levels = levels - parts["zeros"][..., None]
    weight = (levels * scales[..., None]).reshape(codes.shape)
    return torch.nn.functional.linear(x, weight.to(x.dtype))


PRODUCTS = {
    product.name: product
    for product in (
        Product("torch._int_mm", "int8", _int_mm_refusal, _signed, _int_mm),
        Product("torch._scaled_mm", "float8", _scaled_mm_refusal, _floats, _scaled_mm),
        Product("torch._weight_int8pack_mm", "", _int8pack_refusal, _signed, _int8pack),
        Product("torch._weight_int4pack_mm", "", _int4_refusal, _int4, _int4pack),
        Product(DEQUANTIZED, "", lambda _weight, _place: "", _compact, _dequantized),
    )
}
"""Name → product, in the order in which they are preferred."""
