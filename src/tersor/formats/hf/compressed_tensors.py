"""The tensors of compressed-tensors: pack-, int- and float-quantized, mxfp4- and nvfp4-pack-quantized.

Source: facts of the files that llm-compressor writes and transformers and vLLM read. Codes are stored as they are here:
its signed value plus half of the codes.
Differs: three bits are refused, because releases before 0.19 of its library put padding into words and later ones none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import FormatError, SchemeError, UnsupportedError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.formats.hf.groups import (
    SCALE_DTYPES,
    Decoded,
    Groups,
    Part,
    checked_columns,
    checked_part,
    checked_scales,
    format_of,
    integer_rules,
    pack_groups,
    row_blocks,
    store_scales,
    unpack_groups,
)
from tersor.formats.hf.words import Stored, pack_words, unpack_words, words_for
from tersor.formats.integer import IntegerRules
from tersor.formats.micro import GLOBAL_SCALES, MICRO_BLOCK, MicroRules, micro_format
from tersor.kernels import codec
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "PackQuantized",
    "byte_parts",
    "decode_bytes",
    "decode_mx",
    "decode_nv",
    "eight_bit_codes",
    "encode_bytes",
    "encode_mx",
    "encode_nv",
    "is_byte_format",
    "mx_parts",
    "nv_format",
    "nv_parts",
]

SAFE_BITS = (2, 4, 8)
_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """Integers of 2, 4 or 8 bits in words, along the inputs; their zero points along the outputs."""

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
        """Return the tensors that a matrix becomes; SchemeError or ShapeError where it cannot."""
        rules = integer_rules(fmt, "compressed-tensors")
        rows, columns, groups = checked_columns(fmt, shape, "compressed-tensors")
        if rules.bits not in SAFE_BITS:
            raise SchemeError(
                f"compressed-tensors with {rules.bits} bits is packed differently by its releases: use 2, 4 or 8 bits, "
                "or write gptq"
            )
        if rules.scale_type == "f32":
            raise SchemeError(f"engines round these scales to 16 bits: use {fmt.name}-f16 or {fmt.name}-bf16")
        made = {
            "weight_packed": Part("I32", (rows, words_for(columns, rules.bits))),
            "weight_scale": Part(SCALE_DTYPES[rules.scale_type], (rows, groups)),
            "weight_shape": Part("I64", (2,)),
        }
        if not rules.symmetric:
            made["weight_zero_point"] = Part("I32", (words_for(rows, rules.bits), groups))
        return made

    def encode(self, tensor: QuantizedTensor) -> dict[str, Stored]:
        """Return the tensors, codes verbatim."""
        parts = self.parts(tensor.format, tensor.shape)
        bits, rows = int(tensor.format.bits), tensor.shape[0]
        packed = np.empty(parts["weight_packed"].shape, "<i4")
        scales = np.empty(parts["weight_scale"].shape, np.float32)
        zeros = np.empty(parts["weight_scale"].shape, np.uint8)
        for start, stop in row_blocks(tensor.shape):
            groups = unpack_groups(tensor, start, stop)
            packed[start:stop] = pack_words(groups.codes, bits)
            scales[start:stop], zeros[start:stop] = groups.scales, groups.zeros
        made: dict[str, Stored] = {
            "weight_packed": packed,
            "weight_scale": store_scales(scales, parts["weight_scale"].dtype),
            "weight_shape": np.array([rows, tensor.shape[1]], "<i8"),
        }
        if "weight_zero_point" in parts:
            made["weight_zero_point"] = np.ascontiguousarray(pack_words(zeros.T, bits).T).astype("<i4", copy=False)
        return made

    def shape(self, parts: Mapping[str, Part], declared: tuple[int, int], bits: int) -> tuple[int, int]:
        """Return (rows, columns): `declared` by weight_shape, if the tensors agree; FormatError otherwise."""
        rows, columns = declared
        packed = checked_part(parts, "weight_packed", ("I32",), 2)
        _, groups = checked_part(parts, "weight_scale", _SCALES, 2).shape
        expected = {"weight_packed": (rows, words_for(columns, bits)), "weight_scale": (rows, groups)}
        if "weight_zero_point" in parts:
            checked_part(parts, "weight_zero_point", ("I32",), 2)
            expected["weight_zero_point"] = (words_for(rows, bits), groups)
        if bits not in SAFE_BITS:
            raise UnsupportedError(f"compressed-tensors with {bits} bits; its releases pack them differently")
        if any(parts[name].shape != shape for name, shape in expected.items()) or min(rows, columns) < 1:
            found = {name: part.shape for name, part in parts.items()}
            raise FormatError(f"{found} do not belong to one matrix {declared} of {bits} bits ({packed.dtype})")
        if columns % groups:
            raise UnsupportedError(f"{columns} columns in {groups} groups of unequal size cannot be read")
        return rows, columns

    def decode(self, stored: Mapping[str, Stored], dtype: str, bits: int, columns: int, start: int) -> Decoded:
        """Return the rows of `stored`, codes verbatim.

        stored  weight_packed and weight_scale (float32) of the wanted rows; weight_zero_point whole, if there is one
        start   the first of these rows
        """
        scales = checked_scales(stored["weight_scale"])
        rows, groups = scales.shape
        codes = unpack_words(stored["weight_packed"], bits, columns)
        packed = stored.get("weight_zero_point")
        if packed is None:
            zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
        else:
            zeros = np.ascontiguousarray(unpack_words(packed.T, bits, start + rows)[:, start:].T)
        group = 0 if groups == 1 else columns // groups
        fmt = format_of(bits, group, symmetric=packed is None, scale_dtype=dtype)
        return Decoded(QuantizedTensor(fmt, (rows, columns), pack_groups(Groups(codes, zeros, scales), fmt)))


def is_byte_format(fmt: Format) -> bool:
    """Tell whether `fmt` is stored one byte a weight with one scale a row: int8-channel-sym, fp8_e4m3."""
    if isinstance(fmt.rules, IntegerRules):
        return fmt.bits == 8 and fmt.rules.symmetric and not fmt.block
    return fmt.name == "fp8_e4m3"


def byte_parts(fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
    """Return the tensors of int-quantized or float-quantized; SchemeError where `fmt` is neither."""
    if not is_byte_format(fmt):
        raise SchemeError(f"one byte a weight is for int8-channel-sym and fp8_e4m3, not {fmt.name}")
    rows, columns, _ = checked_columns(fmt, shape, "compressed-tensors")
    if isinstance(fmt.rules, IntegerRules):
        scale = SCALE_DTYPES[fmt.rules.scale_type]
        return {"weight": Part("I8", (rows, columns)), "weight_scale": Part(scale, (rows, 1))}
    return {"weight": Part("F8_E4M3", (rows, columns)), "weight_scale": Part("F32", (rows, 1))}


def encode_bytes(tensor: QuantizedTensor) -> dict[str, Stored]:
    """Return weight and weight_scale: signed bytes, or the bits of eight-bit floats."""
    parts = byte_parts(tensor.format, tensor.shape)
    rows, columns = tensor.shape
    side = tensor.data.shape[1] - columns
    codes = tensor.data[:, side:]
    scale = np.ascontiguousarray(tensor.data[:, :side]).view(f"<u{side}").reshape(rows, 1)
    is_integer = parts["weight"].dtype == "I8"
    return {"weight": codes ^ np.uint8(0x80) if is_integer else codes.copy(), "weight_scale": scale}


def decode_bytes(codes: Bytes, scales: Stored, fmt: Format) -> Decoded:
    """Invert `encode_bytes`: `codes` the bytes of the weight, `scales` float32, one a row or one for all."""
    wide = np.ascontiguousarray(np.broadcast_to(checked_scales(scales).reshape(-1, 1), (len(codes), 1)), np.float32)
    if isinstance(fmt.rules, IntegerRules):
        side = store_scales(wide, SCALE_DTYPES[fmt.rules.scale_type])
        codes = codes ^ np.uint8(0x80)
    else:
        side = wide.astype("<f4")
    data = np.concatenate((side.view(np.uint8).reshape(len(codes), -1), codes), axis=1)
    return Decoded(QuantizedTensor(fmt, codes.shape, data))


def eight_bit_codes(values: Float32) -> Bytes:
    """Return the bits of numbers that are eight-bit floats (e4m3); FormatError for NaN."""
    if not bool(np.isfinite(values).all()):
        raise FormatError("a weight is not a number")
    return _eight_bits(values)


def _eight_bits(values: Float32) -> Bytes:
    codes: Bytes = codec.tensor(np.ascontiguousarray(values)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return codes


def mx_parts(fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
    """Return the tensors of mxfp4-pack-quantized: two codes a byte, one power of two for 32 columns."""
    if fmt.name != "mxfp4":
        raise SchemeError(f"mxfp4-pack-quantized is for mxfp4, not {fmt.name}")
    rows, columns, groups = checked_columns(fmt, shape, "compressed-tensors")
    return {"weight_packed": Part("U8", (rows, columns // 2)), "weight_scale": Part("U8", (rows, groups))}


def encode_mx(tensor: QuantizedTensor) -> dict[str, Stored]:
    """Return weight_packed and weight_scale: neighbours share a byte, where GGUF pairs columns 16 apart."""
    parts = mx_parts(tensor.format, tensor.shape)
    blocks = tensor.data.reshape(*parts["weight_scale"].shape, 17)
    if bool((blocks[..., 0] == 255).any()):
        raise SchemeError("an exponent of 255 is not a number in mxfp4-pack-quantized")
    codes = np.concatenate((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), axis=2)
    return {
        "weight_packed": (codes[..., ::2] | codes[..., 1::2] << 4).reshape(parts["weight_packed"].shape),
        "weight_scale": np.ascontiguousarray(blocks[..., 0]),
    }


def decode_mx(packed: Bytes, scales: Bytes, fmt: Format) -> Decoded:
    """Invert `encode_mx`; FormatError for an exponent that is not a number."""
    rows, groups = scales.shape
    if packed.shape != (rows, 16 * groups):
        raise FormatError(f"weight_packed {packed.shape} and weight_scale {scales.shape} do not belong to one matrix")
    if bool((scales == 255).any()):
        raise FormatError("a scale is not a number")
    codes = np.stack((packed & 15, packed >> 4), axis=2).reshape(rows, groups, 32)
    blocks = np.concatenate((scales[..., None], codes[..., :16] | codes[..., 16:] << 4), axis=2)
    return Decoded(QuantizedTensor(fmt, (rows, 32 * groups), blocks.reshape(rows, -1)))


def nv_parts(fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
    """Return the tensors of nvfp4-pack-quantized: two codes a byte, an eight-bit float for 16 columns, one for all."""
    if not isinstance(fmt.rules, MicroRules):
        raise SchemeError(f"nvfp4-pack-quantized is for nvfp4, not {fmt.name}")
    rows, columns, groups = checked_columns(fmt, shape, "compressed-tensors")
    return {
        "weight_packed": Part("U8", (rows, columns // 2)),
        "weight_scale": Part("F8_E4M3", (rows, groups)),
        "weight_global_scale": Part("F32", (1,)),
    }


def encode_nv(tensor: QuantizedTensor) -> dict[str, Stored]:
    """Return weight_packed, weight_scale and weight_global_scale: the bytes of the rows, taken apart."""
    parts = nv_parts(tensor.format, tensor.shape)
    rules: MicroRules = tensor.format.rules  # type: ignore[assignment]  # checked with the parts
    blocks = tensor.data.reshape(*parts["weight_scale"].shape, 1 + MICRO_BLOCK // 2)
    if bool((blocks[..., 0] >= 0x7F).any()):
        raise SchemeError("a scale is negative or not a number, which nvfp4-pack-quantized has no use for")
    return {
        "weight_packed": blocks[..., 1:].reshape(parts["weight_packed"].shape),
        "weight_scale": np.ascontiguousarray(blocks[..., 0]),
        "weight_global_scale": np.array([rules.global_scale], "<f4"),
    }


def nv_format(global_scale: Float32) -> Format:
    """Return the format of a tensor with this weight_global_scale, [1]; FormatError where it cannot be divided by."""
    value = float(global_scale[0])
    if not GLOBAL_SCALES[0] <= value <= GLOBAL_SCALES[1]:
        raise FormatError(f"weight_global_scale is {value:g}; a number from 2^-100 to 2^100 is needed")
    return micro_format(value)


def decode_nv(packed: Bytes, scales: Float32, fmt: Format) -> Decoded:
    """Invert `encode_nv`, `scales` the values of weight_scale; FormatError for one that is negative or no number."""
    rows, groups = scales.shape
    if packed.shape != (rows, MICRO_BLOCK // 2 * groups):
        raise FormatError(f"weight_packed {packed.shape} and weight_scale {scales.shape} do not belong to one matrix")
    if bool((~np.isfinite(scales) | np.signbit(scales)).any()):
        raise FormatError("a scale is negative or not a number")
    blocks = np.concatenate((_eight_bits(scales)[..., None], packed.reshape(rows, groups, -1)), axis=2)
    return Decoded(QuantizedTensor(fmt, (rows, MICRO_BLOCK * groups), blocks.reshape(rows, -1)))
