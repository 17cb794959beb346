from __future__ import annotations

import numpy as np
import pytest

from tersor.containers.lossless import to_gguf_blocks
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.groups import Groups, pack_groups


def tensor(name: str, groups: Groups) -> QuantizedTensor:
    fmt = get(name)
    return QuantizedTensor(fmt, groups.codes.shape, pack_groups(groups, fmt))


def quantized(name: str, columns: int = 128, rows: int = 5) -> QuantizedTensor:
    fmt = get(name)
    weight = np.random.default_rng(9).standard_normal((rows, columns)).astype(np.float32)
    return QuantizedTensor(fmt, (rows, columns), fmt.encode(weight))


def test_the_codes_of_a_q4_0_block_are_the_codes_themselves() -> None:
    codes = (np.arange(32, dtype=np.uint8) % 16)[None]
    groups = Groups(codes, np.array([[8]], np.uint8), np.array([[0.25]], np.float32))
    made = to_gguf_blocks(tensor("int4-g32-sym-f16", groups), "q4_0")
    scale = np.array([0.25], "<f2").tobytes()
    assert made.data.tobytes() == scale + bytes(code | code << 4 for code in range(16))


def test_a_q4_1_block_has_the_scale_and_minus_the_zero_point_times_it() -> None:
    codes = np.full((1, 32), 5, np.uint8)
    groups = Groups(codes, np.array([[3]], np.uint8), np.array([[0.5]], np.float32))
    made = to_gguf_blocks(tensor("int4-g32-asym-bf16", groups), "q4_1")
    assert made.data.tobytes() == np.array([0.5, -1.5], "<f2").tobytes() + bytes([0x55] * 16)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("int4-g128-sym-f16", "q4_0"),
        ("int4-g32-sym-bf16", "q4_0"),
        ("int4-channel-sym-f16", "q4_0"),
        ("int3-g64-sym-f16", "q4_0"),
        ("int2-g128-sym-f16", "q4_0"),
        ("int4-g64-sym-f16", "q8_0"),
        ("int4-g64-asym-f16", "q8_0"),
        ("int8-channel-sym-f16", "q8_0"),
        ("int2-g32-asym-bf16", "q4_1"),
    ],
)
def test_the_numbers_do_not_change(name: str, target: str) -> None:
    source = quantized(name)
    made = to_gguf_blocks(source, target)
    assert made.format.name == target
    np.testing.assert_array_equal(made.dequantize(), source.dequantize())


def test_stacked_matrices_keep_their_shape() -> None:
    fmt = get("int4-g32-sym-f16")
    weight = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32)
    made = to_gguf_blocks(QuantizedTensor(fmt, (2, 3, 64), fmt.encode(weight)), "q4_0")
    assert made.shape == (2, 3, 64)


def test_a_minimum_that_binary16_cannot_hold_is_refused() -> None:
    scale = np.float32(np.float16(0.1))  # eleven significant bits; eleven times it has fourteen
    groups = Groups(np.zeros((1, 32), np.uint8), np.array([[11]], np.uint8), np.array([[scale]], np.float32))
    source = tensor("int4-g32-asym-f16", groups)
    with pytest.raises(
        SchemeError, match=r"the minimum \(zero point times scale\) -1\.09.* is not a number of binary16"
    ):
        to_gguf_blocks(source, "q4_1")
    np.testing.assert_array_equal(to_gguf_blocks(source, "q8_0").dequantize(), source.dequantize())


def test_a_scale_that_binary16_cannot_hold_is_refused() -> None:
    with pytest.raises(SchemeError, match=r"the scale .* is not a number of binary16"):
        to_gguf_blocks(quantized("int4-g32"), "q4_0")


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("int8-g32-f16", "q4_0", "q4_0 has 4 bits, int8-g32-sym-f16 has 8: use q8_0"),
        ("int4-g32-asym-f16", "q4_0", "q4_0 has no zero points"),
        ("int4-g32-f16", "q4_k", "codes can be kept in q4_0, q4_1, q8_0, not in q4_k"),
        ("nf4", "q4_0", "q4_0 stores integer groups, not nf4"),
    ],
)
def test_grids_that_do_not_fit_are_refused(name: str, target: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        to_gguf_blocks(quantized(name), target)


def test_groups_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(ShapeError, match="groups of 16 columns do not divide into blocks of 32"):
        to_gguf_blocks(quantized("int4-g16-f16"), "q4_0")


def test_codes_beyond_a_signed_byte_are_refused() -> None:
    groups = Groups(np.full((1, 32), 255, np.uint8), np.array([[3]], np.uint8), np.array([[0.5]], np.float32))
    with pytest.raises(SchemeError, match="q8_0 reaches -128 to 127 scales, the codes do more"):
        to_gguf_blocks(tensor("int8-g32-asym-f16", groups), "q8_0")
