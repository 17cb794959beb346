from __future__ import annotations

import numpy as np
import pytest

from tersor.core.errors import ShapeError
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get


def test_dequantize_gives_the_shape_back() -> None:
    fmt = get("int8-g32")
    x = np.random.default_rng(40).standard_normal((2, 3, 64)).astype(np.float32)
    quantized = QuantizedTensor(fmt, x.shape, fmt.encode(x.reshape(6, 64)))
    assert quantized.dequantize().shape == (2, 3, 64)
    assert np.abs(quantized.dequantize() - x).max() < 0.02
    assert quantized.nbytes == 6 * 2 * 36
    assert quantized.bits_per_weight == 9.0


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"q4_0 \(2, 64\) takes bytes \(2, 36\), got \(2, 35\)"):
        QuantizedTensor(get("q4_0"), (2, 64), np.zeros((2, 35), np.uint8))
    with pytest.raises(ShapeError, match="at least one axis"):
        QuantizedTensor(get("q4_0"), (), np.zeros((1, 0), np.uint8))


def test_an_empty_tensor_has_no_bits() -> None:
    assert QuantizedTensor(get("q4_0"), (0, 64), np.zeros((0, 36), np.uint8)).bits_per_weight == 0
