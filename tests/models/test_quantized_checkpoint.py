from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, TersorError, UnsupportedError
from tersor.files.checkpoint import Checkpoint
from tersor.formats.hf.settings import Settings
from tersor.models.quantized_checkpoint import QuantizedCheckpoint

torch = pytest.importorskip("torch", reason="files are written with torch: pip install 'tersor[torch]'")
safetensors = pytest.importorskip("safetensors.torch", reason="files are written with safetensors")

GPTQ = Settings("gptq", 4, 1)
PACKED = Settings("compressed-tensors", widths=frozenset({4}))


def words(*shape: int) -> Any:
    return np.full(shape, 0x77777777, np.int32)


def gptq() -> dict[str, Any]:
    return {
        "a.qweight": words(4, 8), "a.qzeros": words(1, 1), "a.scales": np.ones((1, 8), np.float16),
        "a.g_idx": np.zeros(32, np.int32), "norm.weight": np.ones(8, np.float32),
    }  # fmt: skip


def packed() -> dict[str, Any]:
    return {
        "a.weight_packed": words(8, 4), "a.weight_scale": np.ones((8, 1), np.float16),
        "a.weight_shape": np.array([8, 32], np.int64),
    }  # fmt: skip


def micro() -> dict[str, Any]:
    """A matrix [8, 32] of twos (0x44) under scales of 1/2 (0x30) and a global scale of 4."""
    return {
        "a.weight_packed": np.full((8, 16), 0x44, np.uint8), "a.weight_scale": eight_bits(0x30, 8, 2),
        "a.weight_global_scale": np.full(1, 4, np.float32),
    }  # fmt: skip


def eight_bits(code: int, *shape: int) -> Any:
    """Eight-bit floats, which numpy does not have."""
    return torch.full(shape, code, dtype=torch.uint8).view(torch.float8_e4m3fn)


def opened(folder: Path, tensors: dict[str, Any], settings: Settings) -> QuantizedCheckpoint:
    path = folder / "model.safetensors"
    safetensors.save_file({name: torch.as_tensor(values) for name, values in tensors.items()}, path)
    return QuantizedCheckpoint(Checkpoint([path]), settings, str(folder))


def test_a_matrix_appears_under_the_name_of_its_weight(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, gptq(), GPTQ)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a.weight": (8, 32), "norm.weight": (8,)}
    assert checkpoint.tensors["a.weight"].dtype == "int4-channel"
    assert checkpoint.quantized_names == ("a.weight",)
    np.testing.assert_array_equal(checkpoint.read("a.weight"), np.full((8, 32), -1.0))  # 7 less the zero point of 8
    assert checkpoint.read("a.weight", 3, 3).shape == (0, 32)
    assert checkpoint.format("a.weight").name == "int4-channel-sym-f16"
    checkpoint.close()


def test_columns_in_activation_order_are_read_but_are_no_quantized_tensor(tmp_path: Path) -> None:
    tensors = gptq() | {
        "a.qzeros": words(2, 1), "a.scales": np.array([[1.0] * 8, [2.0] * 8], np.float16),
        "a.g_idx": np.arange(32, dtype=np.int32) % 2,
    }  # fmt: skip
    checkpoint = opened(tmp_path, tensors, GPTQ)
    np.testing.assert_array_equal(checkpoint.read("a.weight"), np.tile([-1.0, -2.0], (8, 16)))
    with pytest.raises(UnsupportedError, match=r"a.weight: its groups are not of neighbouring columns \(desc_act\)"):
        checkpoint.quantized("a.weight")


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (gptq, {"a.qzeros": None}, "a: the tensor qzeros is missing beside qweight, scales, g_idx"),
        (gptq, {"a.scales": np.ones((3, 8), np.float16)}, "do not belong to one gptq matrix"),
        (gptq, {"a.scales": np.full((1, 8), np.inf, np.float16)}, "a scale is infinite or not a number"),
        (gptq, {"a.g_idx": np.full(32, 2**31 - 1, np.int32)}, "g_idx names groups 2147483647 to 2147483647"),
        (gptq, {"a.qweight": np.zeros((4, 8), np.float32)}, r"qweight is F32 \(4, 8\); I32"),
        (gptq, {"a.input_scale": np.ones(1, np.float32)}, "a.input_scale cannot be read; load the original model"),
        (packed, {"a.weight_shape": np.array([8, 2**40], np.int64)}, "weight_shape must hold two counts from 1 on"),
        (packed, {"a.weight_shape": np.array([8, -32], np.int64)}, "weight_shape must hold two counts from 1 on"),
        (packed, {"a.weight_shape": np.array([8, 32, 1], np.int64)}, "weight_shape must hold two counts from 1 on"),
        (packed, {"a.weight_shape": np.array([9, 32], np.int64)}, r"do not belong to one matrix \(9, 32\)"),
        (packed, {"a.weight_shape": np.array([8, 64], np.int64)}, r"4 words hold 64 columns in none of .* \(4\)"),
        (packed, {"a.weight_shape": None}, "the tensor weight_shape is missing"),
        (packed, {"a.weight_scale": None}, "the tensor weight_scale is missing"),
        (packed, {"a.weight_g_idx": np.zeros(32, np.int32)}, "weight_g_idx .* cannot be read"),
        (packed, {"a.weight_packed": np.zeros((8, 16), np.uint8)}, "do not belong to one matrix|is F16"),
        (packed, {"a.weight_global_scale": np.ones(1, np.float32)}, r"weight_packed is I32 \(8, 4\); U8"),
        (gptq, {"a.weight_global_scale": np.ones(1, np.float32)}, "a.weight_global_scale cannot be read"),
        (micro, {"a.weight_global_scale": None}, "the tensor weight_global_scale is missing"),
        (micro, {"a.weight_scale": None}, "the tensor weight_scale is missing"),
        (micro, {"a.weight_global_scale": np.zeros(1, np.float32)}, "weight_global_scale is 0; a number from"),
        (micro, {"a.weight_global_scale": np.full(1, np.nan, np.float32)}, "weight_global_scale is nan; a number from"),
        (micro, {"a.weight_global_scale": np.full(1, np.inf, np.float32)}, "weight_global_scale is inf; a number from"),
        (micro, {"a.weight_global_scale": np.full(1, -4, np.float32)}, "weight_global_scale is -4; a number from"),
        (micro, {"a.weight_global_scale": np.ones(2, np.float32)}, r"weight_global_scale is \(2,\); one number"),
        (micro, {"a.weight_global_scale": np.ones(1, np.float16)}, r"weight_global_scale is F16 \(1,\); F32"),
        (
            micro,
            {"a.weight_global_scale": np.array(1, np.float32)},
            r"weight_global_scale is F32 \(\); F32 with 1 axes",
        ),
        (micro, {"a.weight_packed": np.zeros((8, 20), np.uint8)}, r"\(8, 20\) .* do not belong to one matrix"),
        (micro, {"a.weight_packed": np.zeros((9, 16), np.uint8)}, r"\(9, 16\) .* do not belong to one matrix"),
        (micro, {"a.weight_packed": words(8, 4)}, r"weight_packed is I32 \(8, 4\); U8"),
        (micro, {"a.weight_scale": np.ones((8, 2), np.uint8)}, r"weight_scale is U8 \(8, 2\); F8_E4M3"),
        (micro, {"a.weight_scale": eight_bits(0x7F, 8, 2)}, "a scale is negative or not a number"),
        (micro, {"a.weight_scale": eight_bits(0xFF, 8, 2)}, "a scale is negative or not a number"),
        (micro, {"a.weight_scale": eight_bits(0xB0, 8, 2)}, "a scale is negative or not a number"),
        (micro, {"a.input_global_scale": np.ones(1, np.float32)}, "a.input_global_scale cannot be read"),
    ],
)
def test_hostile_tensors_are_refused_by_name(
    tmp_path: Path, base: Callable[[], dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    tensors = {name: value for name, value in {**base(), **change}.items() if value is not None}
    with pytest.raises(TersorError, match=message) as caught:
        opened(tmp_path, tensors, GPTQ if base is gptq else PACKED).read("a.weight")
    assert isinstance(caught.value, (FormatError, UnsupportedError))
    assert str(caught.value).startswith(str(tmp_path))


def test_bits_are_found_among_the_declared_ones_by_the_words(tmp_path: Path) -> None:
    both = Settings("compressed-tensors", widths=frozenset({4, 8}))
    assert opened(tmp_path, packed(), both).format("a.weight").bits == 4
    with pytest.raises(FormatError, match=r"4 words hold 32 columns in none of the declared bits \(2, 8\)"):
        opened(tmp_path, packed(), Settings("compressed-tensors", widths=frozenset({2, 8})))


@pytest.mark.parametrize("scale", [np.array(0.5), np.full(1, 0.5), np.full((3, 1), 0.5)])
def test_signed_bytes_have_one_scale_a_row_or_one_for_all(tmp_path: Path, scale: Any) -> None:
    weight = np.array([[-128, 0, 127]] * 3, np.int8)
    tensors = {"a.weight": weight, "a.weight_scale": np.asarray(scale, np.float32)}
    checkpoint = opened(tmp_path, tensors, Settings("compressed-tensors", widths=frozenset({8})))
    np.testing.assert_array_equal(checkpoint.read("a.weight", 1, 3), weight[1:].astype(np.float32) / 2)
    assert checkpoint.quantized("a.weight").format.name == "int8-channel-sym"


@pytest.mark.parametrize(("number", "name"), [(4, "nvfp4-scale4.0"), (256, "nvfp4"), (300, "nvfp4-scale300.0")])
def test_four_bit_floats_are_read_under_any_global_scale(tmp_path: Path, number: float, name: str) -> None:
    tensors = micro() | {"a.weight_global_scale": np.full(1, number, np.float32)}
    checkpoint = opened(tmp_path, tensors, PACKED)
    np.testing.assert_array_equal(
        checkpoint.read("a.weight"), np.full((8, 32), np.float32(0.5) / np.float32(number) * 2)
    )
    assert checkpoint.read("a.weight", 2, 5).shape == (3, 32)
    assert checkpoint.tensors["a.weight"].dtype == checkpoint.format("a.weight").name == name
    assert (checkpoint.quantized("a.weight").data.reshape(-1, 9) == [0x30] + [0x44] * 8).all()
    checkpoint.close()


def test_blocks_of_rows_and_columns_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight": np.zeros((4, 4), np.int8), "a.weight_scale": np.ones((2, 2), np.float32)}
    with pytest.raises(UnsupportedError, match=r"weight_scale is F32 \(2, 2\); one a row or one for all can be read"):
        opened(tmp_path, tensors, Settings("compressed-tensors", widths=frozenset({8})))
