from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError, UnsupportedError
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.compressed_tensors import (
    PackQuantized,
    byte_parts,
    decode_bytes,
    decode_mx,
    decode_nv,
    encode_bytes,
    encode_mx,
    encode_nv,
    is_byte_format,
    mx_parts,
    nv_format,
    nv_parts,
)
from tersor.formats.hf.groups import Groups, Part, pack_groups


def test_zero_points_are_packed_along_the_outputs() -> None:
    fmt = get("int4-g32-asym-bf16")
    codes = np.tile(np.arange(64, dtype=np.uint8) % 16, (9, 1))
    zeros = np.stack([np.arange(9), np.arange(9) + 3], axis=1).astype(np.uint8)
    values = Groups(codes, zeros, np.full((9, 2), 1.5, np.float32))
    stored = PackQuantized().encode(QuantizedTensor(fmt, (9, 64), pack_groups(values, fmt)))
    assert stored["weight_packed"].astype(np.uint32).tolist() == [[0x76543210, 0xFEDCBA98] * 4] * 9
    assert stored["weight_zero_point"].astype(np.uint32).tolist() == [[0x76543210, 0xA9876543], [0x8, 0xB]]
    assert stored["weight_shape"].tolist() == [9, 64]
    assert stored["weight_scale"].tolist() == [[0x3FC0, 0x3FC0]] * 9


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("where", ["g32-sym-f16", "g24-asym-f16", "channel-sym-f16", "channel-asym-f16"])
@pytest.mark.parametrize("rows", [1, 13, 40])
def test_codes_come_back_verbatim_for_rows_that_fill_no_word(make: Any, bits: int, where: str, rows: int) -> None:
    tensor, _ = make(f"int{bits}-{where}", rows, 96)
    layout = PackQuantized()
    stored = layout.encode(tensor)
    parts = layout.parts(tensor.format, tensor.shape)
    assert {name: part.shape for name, part in parts.items()} == {name: a.shape for name, a in stored.items()}
    assert layout.shape(parts, (rows, 96), bits) == (rows, 96)
    stored["weight_scale"] = stored["weight_scale"].astype(np.float32)
    decoded = layout.decode(stored, "F16", bits, 96, 0)
    assert decoded.tensor.format.name == tensor.format.name
    np.testing.assert_array_equal(decoded.tensor.data, tensor.data)
    start = rows // 2
    some = {name: stored[name][start:] for name in ("weight_packed", "weight_scale")}
    if "weight_zero_point" in stored:
        some["weight_zero_point"] = stored["weight_zero_point"]
    np.testing.assert_array_equal(layout.decode(some, "F16", bits, 96, start).dequantize(), tensor.dequantize()[start:])


def test_columns_that_fill_no_word_are_padded_with_zero_bits(make: Any) -> None:
    tensor, values = make("int4-channel-sym-f16", 3, 9)
    stored = PackQuantized().encode(tensor)
    assert stored["weight_packed"].shape == (3, 2)
    assert stored["weight_packed"][:, 1].tolist() == values.codes[:, 8].tolist()


def test_what_is_packed_differently_by_releases_is_refused() -> None:
    with pytest.raises(SchemeError, match="with 3 bits is packed differently by its releases: use 2, 4 or 8 bits"):
        PackQuantized().parts(get("int3-g32-f16"), (8, 32))
    with pytest.raises(SchemeError, match="engines round these scales to 16 bits: use int4-g32-sym-f16"):
        PackQuantized().parts(get("int4-g32"), (8, 32))


def test_tensors_that_contradict_each_other_are_refused() -> None:
    parts = {"weight_packed": Part("I32", (8, 4)), "weight_scale": Part("F16", (8, 1))}
    assert PackQuantized().shape(parts, (8, 32), 4) == (8, 32)
    with pytest.raises(FormatError, match=r"do not belong to one matrix \(8, 40\) of 4 bits"):
        PackQuantized().shape(parts, (8, 40), 4)
    with pytest.raises(UnsupportedError, match="compressed-tensors with 3 bits"):
        PackQuantized().shape(parts, (8, 32), 3)
    with pytest.raises(UnsupportedError, match="32 columns in 5 groups of unequal size"):
        PackQuantized().shape({**parts, "weight_scale": Part("F16", (8, 5))}, (8, 32), 4)


def test_bytes_are_signed_and_scales_stand_beside() -> None:
    weight = np.array([[-1.28, 0.0, 1.27], [2.54, -0.02, 0.02]], np.float32)
    fmt = get("int8-channel-sym")
    tensor = QuantizedTensor(fmt, (2, 3), fmt.encode(weight))
    stored = encode_bytes(tensor)
    assert stored["weight"].view(np.int8).tolist() == [[-128, 0, 127], [127, -1, 1]]
    scales = stored["weight_scale"].view(np.float32)
    np.testing.assert_allclose(scales, [[0.01], [0.02]], rtol=1e-6)
    np.testing.assert_array_equal(decode_bytes(stored["weight"], scales, fmt).tensor.data, tensor.data)


@pytest.mark.parametrize("name", ["int8-channel-sym", "int8-channel-sym-bf16", "fp8_e4m3"])
def test_bytes_come_back_verbatim(name: str) -> None:
    fmt = get(name)
    weight = np.random.default_rng(5).standard_normal((7, 33)).astype(np.float32)
    tensor = QuantizedTensor(fmt, (7, 33), fmt.encode(weight))
    parts, stored = byte_parts(fmt, (7, 33)), encode_bytes(tensor)
    assert {key: part.shape for key, part in parts.items()} == {key: values.shape for key, values in stored.items()}
    scales = stored["weight_scale"]
    wide = (scales.astype(np.uint32) << 16).view(np.float32) if name.endswith("bf16") else scales.view(np.float32)
    np.testing.assert_array_equal(decode_bytes(stored["weight"], wide, fmt).tensor.data, tensor.data)
    assert is_byte_format(fmt)


def test_one_scale_for_all_rows_is_read() -> None:
    fmt = get("fp8_e4m3")
    decoded = decode_bytes(np.full((3, 4), 0x38, np.uint8), np.array(0.5, np.float32), fmt)  # 0x38 is 1.0
    np.testing.assert_array_equal(decoded.dequantize(), np.full((3, 4), 0.5))


@pytest.mark.parametrize("name", ["int8-channel-asym", "int8-g32", "int4-channel", "fp8_e5m2", "q8_0"])
def test_other_formats_are_no_bytes(name: str) -> None:
    assert not is_byte_format(get(name))
    with pytest.raises(SchemeError, match="one byte a weight is for int8-channel-sym and fp8_e4m3, not"):
        byte_parts(get(name), (4, 32))


def test_neighbours_share_a_byte_in_mxfp4() -> None:
    fmt = get("mxfp4")
    weight = np.tile(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 6], np.float32), 4)[None]
    tensor = QuantizedTensor(fmt, (1, 64), fmt.encode(weight))
    stored = encode_mx(tensor)
    half = [0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x7F]
    assert stored["weight_packed"].tolist() == [half * 4]
    assert stored["weight_scale"].tolist() == [[127, 127]]
    np.testing.assert_array_equal(decode_mx(stored["weight_packed"], stored["weight_scale"], fmt).dequantize(), weight)


def test_mxfp4_comes_back_verbatim_and_broken_scales_are_refused() -> None:
    fmt = get("mxfp4")
    weight = (np.random.default_rng(6).standard_normal((5, 96)) ** 3).astype(np.float32)
    tensor = QuantizedTensor(fmt, (5, 96), fmt.encode(weight))
    stored = encode_mx(tensor)
    assert {key: part.shape for key, part in mx_parts(fmt, (5, 96)).items()} == {k: a.shape for k, a in stored.items()}
    packed, scales = stored["weight_packed"], stored["weight_scale"]
    np.testing.assert_array_equal(decode_mx(packed, scales, fmt).tensor.data, tensor.data)
    with pytest.raises(FormatError, match="a scale is not a number"):
        decode_mx(packed, np.full_like(scales, 255), fmt)
    with pytest.raises(FormatError, match="do not belong to one matrix"):
        decode_mx(packed[:, 1:], scales, fmt)
    with pytest.raises(SchemeError, match="mxfp4-pack-quantized is for mxfp4, not q4_0"):
        mx_parts(get("q4_0"), (4, 32))


def test_neighbours_share_a_byte_in_nvfp4_and_scales_are_eight_bit_floats() -> None:
    fmt = get("nvfp4")
    block = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 6], np.float32)
    weight = np.concatenate([block / 256, 1.25 * block])[None]
    stored = encode_nv(QuantizedTensor(fmt, (1, 32), fmt.encode(weight)))
    half = [0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x7F]
    assert stored["weight_packed"].tolist() == [half * 2]
    assert stored["weight_scale"].tolist() == [[0x38, 0x7A]]  # 1 and 320
    assert stored["weight_global_scale"].tolist() == [256]
    scales = np.array([[1, 320]], np.float32)
    np.testing.assert_array_equal(decode_nv(stored["weight_packed"], scales, fmt).dequantize(), weight)
    doubled = decode_nv(stored["weight_packed"], scales, nv_format(np.array([128], np.float32)))
    np.testing.assert_array_equal(doubled.dequantize(), 2 * weight)


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-scale2688.0", "nvfp4-scale0.3"])
def test_nvfp4_comes_back_verbatim_whatever_its_global_scale(name: str) -> None:
    fmt = get(name)
    random = np.random.default_rng(7)
    data = random.integers(0, 256, (14, 8, 9), dtype=np.uint8)
    data[..., 0] = random.permutation(np.arange(112) + 15).reshape(14, 8)  # up to 448
    tensor = QuantizedTensor(fmt, (14, 128), data.reshape(14, -1))
    stored = encode_nv(tensor)
    parts = {key: part.shape for key, part in nv_parts(fmt, (14, 128)).items()}
    assert parts == {key: values.shape for key, values in stored.items()}
    assert nv_format(stored["weight_global_scale"]) == fmt
    scales = np.ldexp((8 + (data[..., 0] & 7)) / np.float32(8), data[..., 0].astype(np.int32) // 8 - 7)
    found = decode_nv(stored["weight_packed"], scales.astype(np.float32), fmt)
    np.testing.assert_array_equal(found.tensor.data, tensor.data)


def test_broken_parts_of_nvfp4_are_refused() -> None:
    fmt = get("nvfp4")
    packed, scales = np.zeros((2, 16), np.uint8), np.ones((2, 2), np.float32)
    assert decode_nv(packed, 0 * scales, fmt).tensor.shape == (2, 32)
    for bad in (np.nan, -1, -0.0):
        broken = scales.copy()
        broken[1, 0] = bad
        with pytest.raises(FormatError, match="a scale is negative or not a number"):
            decode_nv(packed, broken, fmt)
    with pytest.raises(FormatError, match="do not belong to one matrix"):
        decode_nv(packed[:, 1:], scales, fmt)
    for number in (0, -256, np.nan, np.inf, 1e-38, 1e38):
        with pytest.raises(FormatError, match=r"weight_global_scale is .*; a number from 2\^-100 to 2\^100 is needed"):
            nv_format(np.array([number], np.float32))
    with pytest.raises(SchemeError, match="nvfp4-pack-quantized is for nvfp4, not mxfp4"):
        nv_parts(get("mxfp4"), (4, 32))
    data = np.zeros((1, 9), np.uint8)
    for code in (0x7F, 0x80, 0xFF):
        data[0, 0] = code
        with pytest.raises(SchemeError, match="a scale is negative or not a number, which nvfp4-pack-quantized"):
            encode_nv(QuantizedTensor(fmt, (1, 16), data))
