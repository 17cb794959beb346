from __future__ import annotations

import numpy as np
import torch

from tersor.kernels.reference import arithmetic, packing


def test_nearest_int_rounds_half_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, 4194303.0, -4194303.0])
    assert arithmetic.nearest_int(x).tolist() == [0, 2, 2, 0, -2, 2, 4194303, -4194303]
    assert arithmetic.nearest_int(torch.tensor([float("nan")])).tolist() == [0]


def test_rounded_away_rounds_half_away_from_zero() -> None:
    x = torch.tensor([0.5, -0.5, 2.5, -2.5, 0.49999997, 8388609.0, float("inf"), float("nan")])
    assert arithmetic.rounded_away(x).tolist() == [1, -1, 3, -3, 0, 8388609, 0, 0]


def test_root_is_rounded_once() -> None:
    x = np.random.default_rng(23).standard_exponential(100_000).astype(np.float32)
    np.testing.assert_array_equal(arithmetic.root(torch.from_numpy(x)).numpy(), np.sqrt(x))


def test_scalars_are_divided_with_one_rounding() -> None:
    x = np.random.default_rng(24).standard_exponential(10_000).astype(np.float32)
    np.testing.assert_array_equal(arithmetic.divided(63, torch.from_numpy(x)).numpy(), np.float32(63) / x)


def test_sums_run_from_the_first_element_to_the_last() -> None:
    x = np.random.default_rng(25).standard_normal((256, 50)).astype(np.float32)
    total = np.zeros(50, np.float32)
    for row in x:
        total = total + row
    np.testing.assert_array_equal(arithmetic.sum_in_order(torch.from_numpy(x)).numpy(), total)


def test_of_equal_extremes_the_first_is_taken() -> None:
    x = torch.tensor([[0.0], [-0.0]])
    low, high = arithmetic.extreme(x)
    assert not torch.signbit(low)
    assert not torch.signbit(high)
    magnitude, signed = arithmetic.largest_magnitude(torch.tensor([[1.0], [-2.0], [2.0]]))
    assert (float(magnitude), float(signed)) == (2.0, -2.0)


def test_fields_unpack_to_what_was_packed() -> None:
    rng = np.random.default_rng(26)
    for bits, stride in ((1, 32), (2, 32), (4, 16), (4, 32), (4, 64), (1, 4)):
        codes = torch.from_numpy(rng.integers(0, 1 << bits, (7, 256), dtype=np.int32))
        packed = packing.pack_fields(codes, bits, stride)
        assert packed.shape == (7, 256 * bits // 8)
        assert torch.equal(packing.unpack_fields(packed, bits, stride), codes)


def test_every_six_bit_scale_survives_packing() -> None:
    scales = torch.arange(64, dtype=torch.int32).reshape(8, 8)
    minima = scales.flip(0)
    again = packing.unpack_q4_scales(packing.pack_q4_scales(scales, minima))
    assert torch.equal(again[0], scales)
    assert torch.equal(again[1], minima)
    sixteen = torch.arange(64, dtype=torch.int32).reshape(4, 16)
    assert torch.equal(packing.unpack_q3_scales(packing.pack_q3_scales(sixteen)), sixteen)
