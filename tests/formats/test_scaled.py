from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from tersor.core.arrays import Float32
from tersor.formats import get
from tersor.formats.scaled import NORMAL_FLOATS


def eight_bit_values(exponent_bits: int, mantissa_bits: int, bias: int) -> Float32:
    """Values of the 256 codes from the definition of the float, infinities and NaN as NaN."""
    values = []
    for code in range(256):
        sign = -1.0 if code & 128 else 1.0
        exponent, mantissa = code >> mantissa_bits & (1 << exponent_bits) - 1, code & (1 << mantissa_bits) - 1
        fraction = mantissa / (1 << mantissa_bits)
        value = math.ldexp(fraction, 1 - bias) if exponent == 0 else math.ldexp(1 + fraction, exponent - bias)
        special = code & 127 == 127 if mantissa_bits == 3 else exponent == 31
        values.append(math.nan if special else sign * value)
    return np.array(values, np.float32)


FLOATS = {"fp8_e4m3": eight_bit_values(4, 3, 7), "fp8_e5m2": eight_bit_values(5, 2, 15)}


def nearest_even(x: Float32, table: Float32) -> list[int]:
    """Code of the nearest value, of two equally near ones the even code."""
    distance = np.where(np.isnan(table), np.inf, np.abs(x[:, None].astype(np.float64) - table))
    codes = []
    for value, row in zip(x, distance, strict=True):
        near = [int(code) for code in np.flatnonzero(row == row.min()) if (code >= 128) == bool(np.signbit(value))]
        codes.append(min(near, key=lambda code: code % 2))
    return codes


@pytest.mark.parametrize("name", FLOATS)
def test_eight_bit_codes_are_the_nearest_floats(name: str) -> None:
    table = FLOATS[name]
    finite = np.sort(table[np.isfinite(table)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    top = np.float32(get(name).highest)
    x = np.concatenate([[top], finite, middles, np.nextafter(middles, top), np.nextafter(middles, -top)])
    x = x[x != 0].astype(np.float32)  # ±0 are told apart by their sign alone
    grid = get(name).fit(torch.from_numpy(x)[None])
    codes = grid.round_all(torch.from_numpy(x)[None])[0].tolist()
    assert codes == nearest_even(x, table)


@pytest.mark.parametrize("name", FLOATS)
def test_eight_bit_codes_decode_by_definition(name: str) -> None:
    data = np.concatenate([np.float32(2).tobytes(), np.arange(256, dtype=np.uint8).tobytes()], axis=None)
    packed = np.frombuffer(b"".join(data), np.uint8)[None]
    decoded = get(name).decode(packed, 256)[0]
    expected = np.where(np.isnan(FLOATS[name]), np.nan, FLOATS[name] * 2)
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(decoded[there], expected[there])


@pytest.mark.parametrize("name", FLOATS)
def test_the_largest_magnitude_of_a_row_is_the_largest_float(name: str) -> None:
    x = np.array([[3.0, -1.0, 0.5], [-1e-3, 1e-4, 0], [0, 0, 0], [1e-45, 0, 0], [2.0**120, 1, -1]], np.float32)
    decoded = get(name).decode(get(name).encode(x), 3)
    np.testing.assert_allclose(decoded[[0, 1, 4]].max(axis=1), x[[0, 1, 4]].max(axis=1), rtol=0.1)
    np.testing.assert_allclose(np.abs(decoded).max(axis=1)[[0, 1, 4]], np.abs(x).max(axis=1)[[0, 1, 4]], rtol=1e-6)
    assert not decoded[2].any()
    assert np.isfinite(decoded).all()


def test_normal_floats_are_the_quantiles_of_the_paper() -> None:
    """Half the codes split the negative side, half the positive: quantiles of equal tails, scaled to ±1, zero exact."""
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    positive = [NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    values = np.sort(np.array([*positive, 0.0, *negative]))
    np.testing.assert_allclose(NORMAL_FLOATS, values / values.max(), atol=3e-7)


def test_normal_float_blocks_keep_their_extremes_and_zeros() -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, :3] = (-2.0, 0.0, 0.4)
    decoded = get("nf4").decode(get("nf4").encode(x), 64)
    assert decoded[0, 0] == -2.0
    assert not decoded[0, 3:].any()
    assert not decoded[1].any()


def test_normal_float_pairs_have_their_first_code_in_the_high_nibble() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, 0], x[0, 1] = -1, 1
    data = get("nf4").encode(x)
    assert data[0, :4].tobytes() == np.float32(1).tobytes()
    assert data[0, 4] == 0x0F
    assert (data[0, 5:] == 0x77).all()
