"""nvfp4 equals its definition, searches as well as all scales that exist allow, and knows other global scales."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import SchemeError, ShapeError
from tersor.formats import get, micro

KINDS = ("gaussian", "heavy", "one-sided")
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
Float64 = npt.NDArray[np.float64]


def eight_bits(code: int) -> float:
    """An e4m3 from its definition: sign, four bits of exponent (bias 7), three of mantissa, no infinity."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * math.ldexp(mantissa / 8 + (exponent > 0), max(exponent, 1) - 7)


def four_bits(code: int) -> float:
    """An e2m1 from its definition: sign, two bits of exponent (bias 1), one of mantissa."""
    sign, exponent, mantissa = -1.0 if code & 8 else 1.0, code >> 1 & 3, code & 1
    return sign * math.ldexp(mantissa / 2 + (exponent > 0), max(exponent, 1) - 1)


def by_definition(data: Bytes, global_scale: float) -> Float32:
    """Values of packed blocks [blocks, 9], one after the other."""
    rows = []
    for block in data.tolist():
        scale = np.float32(eight_bits(block[0])) / np.float32(global_scale)
        codes = [byte >> shift & 15 for byte in block[1:] for shift in (0, 4)]
        rows.append([scale * np.float32(four_bits(code)) for code in codes])
    return np.array(rows, np.float32)


def weights(kind: str, rows: int = 30, columns: int = 512) -> Float32:
    rng = np.random.default_rng(95)
    x = rng.standard_normal((rows, columns))
    x = {"gaussian": x, "heavy": rng.standard_t(3, x.shape), "one-sided": np.abs(x)}[kind]
    return (0.03 * x).astype(np.float32)


def importance(columns: int = 512) -> Float32:
    return np.random.default_rng(96).exponential(size=columns).astype(np.float32)


def block_errors(x: Float32, decoded: Float32, shares: Float32 | None) -> Float64:
    """Σ importance · error² of every block."""
    error = np.square(decoded.astype(np.float64) - x) * (1.0 if shares is None else shares)
    return np.asarray(error.reshape(-1, 16).sum(axis=1))


@pytest.mark.parametrize("global_scale", [256.0, 2688.0, 0.3])
def test_random_bytes_decode_by_definition(global_scale: float) -> None:
    data = np.random.default_rng(97).integers(0, 256, (400, 9), dtype=np.uint8)
    data[:127, 0] = np.arange(127)
    data[127:, 0] %= 127
    expected = by_definition(data, global_scale)
    found = micro.micro_format(global_scale).decode(data, 16)
    np.testing.assert_array_equal(found, expected)


def test_neighbours_share_a_byte_and_the_largest_becomes_6() -> None:
    block = np.array([[0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0.1]], np.float32) / np.float32(4)
    for search in ("best", "ggml"):
        data = get("nvfp4").encode(block, search=search)
        # 1/4 is 64/256, and 64 = 2^6 has the exponent 13 and no mantissa: 0x68
        assert data.tolist() == [[0x68, 0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F]]


def test_the_plain_search_makes_the_largest_magnitude_6() -> None:
    x = weights("heavy")
    wanted = np.abs(x.reshape(-1, 16)).max(axis=1).astype(np.float64) / 6 * 256
    scales = np.array([eight_bits(code) for code in range(0x08, 0x7F)])
    nearest = np.abs(wanted[:, None] - scales).argmin(axis=1) + 0x08
    assert get("nvfp4").encode(x, search="ggml").reshape(-1, 9)[:, 0].tolist() == nearest.tolist()


@WEIGHTED
@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_is_almost_as_good_as_the_best_of_all_that_exist(kind: str, weighted: bool) -> None:
    fmt, x, shares = get("nvfp4"), weights(kind), importance() if weighted else None
    best, plain = (
        block_errors(x, fmt.decode(fmt.encode(x, importance=shares, search=search), 512), shares)
        for search in ("best", "ggml")
    )
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    size, cost = np.abs(x.astype(np.float64)).reshape(-1, 16), np.tile(1.0 if shares is None else shares, (len(x), 1))
    errors = []
    for code in range(0x08, 0x7F):
        nearest = np.abs(size[:, :, None] - eight_bits(code) / 256 * levels).min(axis=2)
        errors.append((np.broadcast_to(cost, x.shape).reshape(-1, 16) * nearest**2).sum(axis=1))
    least = np.min(errors, axis=0)
    assert (best >= least * (1 - 1e-6)).all()
    assert (best <= plain * (1 + 1e-6)).all()
    assert best.sum() <= (1.005 if weighted else 1.0001) * least.sum()
    assert best.sum() < (0.8 if weighted else 0.9) * plain.sum()


@WEIGHTED
def test_searching_commutes_with_signs_and_powers_of_two(weighted: bool) -> None:
    fmt, x, shares = get("nvfp4"), weights("heavy"), importance() if weighted else None
    plain = fmt.decode(fmt.encode(x, importance=shares), 512)
    for factor in (-1, 4, -0.5):
        found = fmt.decode(fmt.encode(np.float32(factor) * x, importance=shares), 512)
        np.testing.assert_array_equal(found, np.float32(factor) * plain)


def test_only_the_ratios_of_importance_matter() -> None:
    fmt, x, shares = get("nvfp4"), weights("heavy"), importance()
    weighted = fmt.encode(x, importance=shares)
    for factor in (2**-20, 2**20):
        np.testing.assert_array_equal(fmt.encode(x, importance=np.float32(factor) * shares), weighted)
    np.testing.assert_array_equal(fmt.encode(x, importance=np.ones_like(shares)), fmt.encode(x))
    np.testing.assert_array_equal(fmt.encode(x, importance=np.zeros_like(shares)), fmt.encode(x, search="ggml"))
    assert (weighted != fmt.encode(x)).any()


def test_every_block_of_a_row_has_the_importance_of_its_own_columns() -> None:
    fmt, x, shares = get("nvfp4"), weights("gaussian", rows=7), importance()
    data = fmt.encode(x, importance=shares).reshape(7, -1, 9)
    for block, start in enumerate(range(0, 512, 16)):
        columns = slice(start, start + 16)
        grid = fmt.fit(torch.from_numpy(x[:, columns]), torch.from_numpy(shares[columns]))
        codes = grid.round_all(torch.from_numpy(x[:, columns]))
        np.testing.assert_array_equal(fmt.pack(grid, codes).numpy(), data[:, block])


@WEIGHTED
def test_what_is_searched_together_never_changes_the_bytes(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, x, shares = get("nvfp4"), weights("gaussian", rows=7), importance() if weighted else None
    whole = fmt.encode(x, importance=shares)
    monkeypatch.setattr(micro, "AT_ONCE", 5)
    np.testing.assert_array_equal(fmt.encode(x, importance=shares), whole)
    np.testing.assert_array_equal(np.concatenate([fmt.encode(row[None], importance=shares) for row in x]), whole)


@pytest.mark.parametrize("search", ["best", "ggml"])
def test_scales_are_never_zero_negative_or_subnormal_and_small_errors_stay_small(search: str) -> None:
    sizes = np.concatenate([[0, 1e-45, 1e-30], np.geomspace(1e-8, 10.5, 300)]).astype(np.float32)
    x = (sizes[:, None] * np.random.default_rng(98).uniform(-1, 1, (len(sizes), 16))).astype(np.float32)
    x[3:, 0] = sizes[3:].clip(max=10.5)
    data = get("nvfp4").encode(x, search=search)
    assert data[:, 0].min() == 0x08  # 2^-6, the smallest normal e4m3
    assert data[:, 0].max() == 0x7E  # 448
    error = np.abs(get("nvfp4").decode(data, 16) - x)
    assert (error <= np.maximum(2.0**-16, 0.34 * sizes[:, None])).all()
    assert error[sizes < 3.6e-4].max() <= 2.0**-14


def test_what_no_scale_reaches_is_refused_by_place() -> None:
    x = np.zeros((3, 32), np.float32)
    x[1, 20] = 10.5
    assert get("nvfp4").decode(get("nvfp4").encode(x), 32)[1, 20] == 10.5
    x[2, 7] = -10.6
    with pytest.raises(
        SchemeError, match=r"nvfp4 stores magnitudes up to 10.5, but row 2, column 7 is -10.6: use bf16"
    ):
        get("nvfp4").encode(x)
    with pytest.raises(ShapeError, match=r"24 columns do not divide into blocks of 16 \(nvfp4\); f16 takes its place"):
        get("nvfp4").row_bytes(24)


def test_another_global_scale_is_another_format() -> None:
    fmt = get("nvfp4-scale2688")
    assert fmt.name == "nvfp4-scale2688.0"
    assert get(fmt.name.upper()) == fmt
    assert fmt.largest == pytest.approx(1)
    assert get("nvfp4-scale256.0") is get("nvfp4")
    odd = micro.micro_format(0.1)  # not a float32
    assert odd.name == "nvfp4-scale0.1"
    assert get(odd.name) == odd
    assert isinstance(odd.rules, micro.MicroRules)
    assert odd.rules.global_scale == float(np.float32(0.1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvfp4-scaleone", "'nvfp4-scaleone' is no number format: write nvfp4, or nvfp4-scale and a number"),
        ("nvfp4-scale0", r"a global scale of nvfp4 is a number from 2\^-100 to 2\^100, not 0"),
        ("nvfp4-scale-3", "not -3"),
        ("nvfp4-scalenan", "not nan"),
        ("nvfp4-scale1e300", r"not 1e\+300"),
    ],
)
def test_names_of_no_global_scale_are_refused(name: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        get(name)


def test_stored_scales_are_those_that_are_written() -> None:
    wanted = torch.tensor([1e-9, 2.0**-14, 1.0, 1.03, 1.07, 1.75, 1e9])
    rules = micro.MicroRules()
    assert rules.stored(wanted).tolist() == [2.0**-14, 2.0**-14, 1.0, 1.0, 1.125, 1.75, 1.75]
    assert micro.MicroRules(2.0).stored(wanted[2:4]).tolist() == [1.0, 1.0]
