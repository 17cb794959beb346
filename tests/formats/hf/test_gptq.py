from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError, ShapeError, UnsupportedError
from tersor.formats import get
from tersor.formats.hf.gptq import Gptq
from tersor.formats.hf.groups import Groups, Part
from tersor.formats.hf.words import Stored


def naive(values: Groups, bits: int, version: int) -> dict[str, Any]:
    """qweight and qzeros code by code, with Python's integers."""
    rows, columns = values.codes.shape
    groups = values.zeros.shape[1]
    qweight = [[0] * rows for _ in range(columns * bits // 32)]
    for n in range(rows):
        number = sum(int(values.codes[n, k]) << (bits * k) for k in range(columns))
        for word, line in enumerate(qweight):
            line[n] = number >> (32 * word) & 0xFFFFFFFF
    qzeros = []
    for g in range(groups):
        shift = 1 if version == 1 else 0
        number = sum((int(values.zeros[n, g]) - shift) << (bits * n) for n in range(rows))
        qzeros.append([number >> (32 * word) & 0xFFFFFFFF for word in range(rows * bits // 32)])
    return {"qweight": qweight, "qzeros": qzeros}


def read_back(stored: dict[str, Stored], dtype: str) -> dict[str, Stored]:
    """The tensors as a reader of files gives them: scales widened."""
    scales = stored["scales"]
    wide = (
        (scales.astype(np.uint32) << 16).view(np.float32)
        if dtype == "BF16"
        else scales.view(np.float16).astype(np.float32)
    )
    return {**stored, "scales": wide}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("where", ["g32-sym-f16", "g64-asym-bf16", "channel-sym-bf16", "channel-asym-f16"])
def test_the_tensors_equal_those_made_code_by_code_and_are_read_back(
    make: Any, version: int, bits: int, where: str
) -> None:
    tensor, values = make(f"int{bits}-{where}", 64, 192, seed=bits)
    layout = Gptq(version)
    stored = layout.encode(tensor)
    expected = naive(values, bits, version)
    assert stored["qweight"].astype(np.uint32).tolist() == expected["qweight"]
    assert stored["qzeros"].astype(np.uint32).tolist() == expected["qzeros"]
    group = tensor.format.block or 192
    assert stored["g_idx"].tolist() == [k // group for k in range(192)]
    parts = layout.parts(tensor.format, tensor.shape)
    assert {name: part.shape for name, part in parts.items()} == {name: a.shape for name, a in stored.items()}
    assert layout.shape(parts, bits) == (64, 192)
    decoded = layout.decode(read_back(stored, parts["scales"].dtype), parts["scales"].dtype, bits)
    assert decoded.order is None
    assert decoded.tensor.format.name == tensor.format.name
    np.testing.assert_array_equal(decoded.tensor.data, tensor.data)
    some = layout.decode(read_back(stored, parts["scales"].dtype), parts["scales"].dtype, bits, 5, 41)
    np.testing.assert_array_equal(some.dequantize(), tensor.dequantize()[5:41])


def test_eight_codes_make_the_word_that_is_read_off_the_page() -> None:
    values = Groups(
        np.tile(np.arange(8, dtype=np.uint8), (8, 1)), np.full((8, 1), 8, np.uint8), np.full((8, 1), 0.5, np.float32)
    )
    from_hand = naive(values, 4, 1)
    assert from_hand["qweight"] == [[0x76543210] * 8]
    assert from_hand["qzeros"] == [[0x77777777]]  # 8 less 1, eight times
    assert naive(values, 4, 2)["qzeros"] == [[0x88888888]]


def test_columns_in_activation_order_are_put_back(make: Any) -> None:
    tensor, _ = make("int4-g32-asym-f16", 8, 96)
    layout = Gptq(2)
    stored = read_back(layout.encode(tensor), "F16")
    order = np.random.default_rng(3).permutation(96)
    codes = np.empty((8, 96), np.uint8)
    fields = stored["qweight"].astype(np.uint32).T[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    codes[:, order] = fields.reshape(8, 96)
    g_idx = np.empty(96, np.int32)
    g_idx[order] = np.arange(96) // 32
    words = (codes.reshape(8, 12, 8).astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=2)
    shuffled = {**stored, "qweight": np.ascontiguousarray(words.T.astype(np.uint32)).view(np.int32), "g_idx": g_idx}
    decoded = layout.decode(shuffled, "F16", 4)
    assert decoded.order is not None
    expected = np.empty((8, 96), np.float32)
    expected[:, order] = tensor.dequantize()
    np.testing.assert_array_equal(decoded.dequantize(), expected)


def test_version_1_has_no_zero_point_of_0(make: Any) -> None:
    tensor, _ = make("int4-g32-asym-f16", 8, 32)
    tensor.data[0, 2] = 0
    with pytest.raises(SchemeError, match="gptq version 1 stores zero points less 1 and has no 0: write gptq_v2"):
        Gptq(1).encode(tensor)
    assert Gptq(2).encode(tensor)["qzeros"][0, 0] & 15 == 0


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("int4-g32-f16", (4, 32), "4 rows of 4 bits do not fill words of 32"),
        ("int3-channel-f16", (32, 40), "40 columns of 3 bits do not fill words of 32"),
        ("int4-g32-f16", (8, 40), "40 columns do not divide into blocks of 32"),
        ("int4-g32-f16", (2, 8, 32), r"gptq stores matrices \[rows, columns\]"),
    ],
)
def test_shapes_that_do_not_fill_words_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Gptq(1).parts(get(name), shape)


def test_formats_without_16_bit_scales_are_refused() -> None:
    with pytest.raises(SchemeError, match="gptq stores scales of 16 bits: use int4-g32-sym-f16 or int4-g32-sym-bf16"):
        Gptq(1).parts(get("int4-g32"), (8, 32))
    with pytest.raises(SchemeError, match="gptq stores integer groups, not q4_k"):
        Gptq(1).parts(get("q4_k"), (8, 256))


GOOD = {
    "qweight": Part("I32", (4, 8)), "qzeros": Part("I32", (1, 1)), "scales": Part("F16", (1, 8)),
    "g_idx": Part("I32", (32,)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qzeros": None}, "qzeros is missing"),
        ({"qweight": Part("I64", (4, 8))}, r"qweight is I64 \(4, 8\); I32 with 2 axes is needed"),
        ({"qweight": Part("I32", (0, 8))}, "none of them empty"),
        ({"scales": Part("F16", (8,))}, r"scales is F16 \(8,\)"),
        ({"scales": Part("F16", (2, 8))}, "do not belong to one gptq matrix of 4 bits"),
        ({"g_idx": Part("I32", (31,))}, "do not belong to one gptq matrix of 4 bits"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(change: dict[str, Part | None], message: str) -> None:
    parts = {name: part for name, part in {**GOOD, **change}.items() if part is not None}
    with pytest.raises(FormatError, match=message):
        Gptq(1).shape(parts, 4)


def test_groups_of_unequal_size_are_refused() -> None:
    parts = {**GOOD, "qzeros": Part("I32", (3, 1)), "scales": Part("F16", (3, 8))}
    with pytest.raises(UnsupportedError, match="32 columns in 3 groups of unequal size cannot be read"):
        Gptq(1).shape(parts, 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("g_idx", np.full(64, 7, np.int32), "g_idx names groups 7 to 7, there are 2"),
        ("g_idx", np.full(64, -1, np.int32), "g_idx names groups -1 to -1"),
        ("g_idx", np.zeros(64, np.int32), "groups of unequal size"),
        ("scales", np.full((2, 8), np.nan, np.float32), "a scale is infinite or not a number"),
        ("qzeros", np.full((2, 1), -1, np.int32), "stored as 15, which means 16 in gptq version 1"),
    ],
)
def test_values_outside_their_range_are_refused(make: Any, name: str, value: Stored, message: str) -> None:
    tensor, _ = make("int4-g32-sym-f16", 8, 64)
    stored = {**read_back(Gptq(1).encode(tensor), "F16"), name: value}
    with pytest.raises((FormatError, UnsupportedError), match=message):
        Gptq(1).decode(stored, "F16", 4)
