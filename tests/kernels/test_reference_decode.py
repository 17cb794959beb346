from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import ShapeError
from tersor.formats import get
from tersor.kernels import reference
from tersor.kernels.layouts import LAYOUTS

if TYPE_CHECKING:
    from tests.kernels.conftest import Ggml

COLUMNS = 512
QUANTIZED = [name for name in LAYOUTS if name not in {"f32", "f16", "bf16"}]


def random_bytes(name: str) -> Bytes:
    shape = (40, LAYOUTS[name].row_bytes(COLUMNS))
    return np.random.default_rng(22).integers(0, 256, shape, dtype=np.uint8)


def decode(name: str, data: Bytes) -> Float32:
    values: Float32 = reference.decode(name, torch.from_numpy(data), COLUMNS).numpy()
    return values


def assert_same_bits(actual: Float32, expected: Float32) -> None:
    """Equal bits, the sign of zero included; any NaN equals any NaN."""
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(actual[there].view(np.uint32), expected[there].view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_any_bytes_decode_as_in_ggml(name: str, ggml: Ggml) -> None:
    data = random_bytes(name)
    assert_same_bits(decode(name, data), ggml.decode(name, data, COLUMNS))


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # gguf multiplies the NaN of random scales
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in {"q8_k", "binary"}])
def test_any_bytes_decode_as_in_gguf(name: str) -> None:
    data = random_bytes(name)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(get(name).ggml_type)).reshape(40, COLUMNS)
    np.testing.assert_array_equal(decode(name, data), expected.astype(np.float32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_decoding_columns_one_by_one_gives_the_same_values(name: str) -> None:
    shape = LAYOUTS[name]
    data = torch.from_numpy(random_bytes(name)).reshape(-1, shape.size)
    grid, codes = reference.unpack(name, data)
    single = torch.stack([grid.value(codes[:, j], j) for j in range(shape.weights)], dim=1)
    assert_same_bits(single.numpy(), grid.values(codes).numpy())


def test_bytes_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"q4_0: 64 columns take \[rows, 36\] bytes, got \(2, 35\)"):
        reference.decode("q4_0", torch.zeros((2, 35), dtype=torch.uint8), 64)
