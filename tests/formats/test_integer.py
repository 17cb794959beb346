from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError, ShapeError
from tersor.formats import get
from tersor.formats.integer import IntegerGrid, pack_stream, unpack_stream

finite = st.floats(min_value=-(2.0**120), max_value=2.0**120, width=32)


def fitted(name: str, x: Float32) -> IntegerGrid:
    grid = get(name).fit(torch.from_numpy(x))
    assert isinstance(grid, IntegerGrid)
    return grid


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("int4-g128", "int4-g128-sym"),
        ("int4-g128-sym", "int4-g128-sym"),
        ("int8-channel-asym", "int8-channel-asym"),
        ("int3-tensor", "int3-tensor-sym"),
        ("INT8", "int8-channel-sym"),
        ("int2-g48-asym", "int2-g48-asym"),
        ("int4-asym", "int4-channel-asym"),
        ("int4-g128-f16", "int4-g128-sym-f16"),
        ("int4-g128-asym-bf16", "int4-g128-asym-bf16"),
        ("int8-f32", "int8-channel-sym"),
    ],
)
def test_names_are_made_canonical(spelled: str, canonical: str) -> None:
    assert get(spelled).name == canonical


@pytest.mark.parametrize(
    "name", ["int5", "int4-g0", "int4-g", "int4-g-8", "int4-g0128", "int4-sym-g128", "int4_g128", "int", "int4-f8"]
)
def test_misspelt_names_are_refused(name: str) -> None:
    with pytest.raises(SchemeError, match="is no integer format: write int8, int4, int3 or int2"):
        get(name)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["sym", "asym"])
@settings(deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=12))
@example(values=[1e-45])
@example(values=[-1e-45, 3e-45])
@example(values=[1.1754942e-38])
@example(values=[0.0, -0.0])
@example(values=[2.0**120, 1e-30])
@example(values=[2.0**120, -(2.0**120)])
@example(values=[0.7, 0.7, 0.7])
@example(values=[-3.0, -2.0])
@example(values=[1.5, -13.5])
def test_errors_stay_within_half_a_step_and_zero_is_exact(bits: int, kind: str, values: list[float]) -> None:
    x = np.array([values], np.float32)
    grid = fitted(f"int{bits}-channel-{kind}", x)
    scale = float(grid.scale[0])
    assert np.isfinite(scale)
    assert scale >= 2.0**-126
    decoded = grid.values(grid.round_all(torch.from_numpy(x))).numpy()
    slack = 2.0**-22 * float(np.abs(x).max())  # two roundings of values, one of the scale
    assert np.abs(decoded.astype(np.float64) - x).max() <= scale / 2 + slack
    zero = grid.round_all(torch.zeros(1, 1))
    assert float(grid.values(zero)) == 0.0


@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_scales_stay_finite_up_to_the_largest_float(kind: str) -> None:
    top = np.finfo(np.float32).max
    grid = fitted(f"int2-channel-{kind}", np.array([[top, -top]], np.float32))
    assert bool(grid.scale.isfinite())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_grids_use_their_lowest_code(bits: int) -> None:
    x = np.array([[-1.0, 0.1], [1.0, -0.1]], np.float32)
    grid = fitted(f"int{bits}-channel-sym", x)
    codes = grid.round_all(torch.from_numpy(x))
    assert int(codes[0, 0]) == 0
    assert int(codes[1, 0]) == (1 << bits) - 1
    np.testing.assert_allclose(grid.values(codes)[:, 0].numpy(), [-1, 1], rtol=1e-6)


def test_the_textbook_formula_does_not_represent_zero() -> None:
    x = torch.tensor([[0.2, 0.0, 1.0]])
    low, high = 0.2, 1.0  # a float zero point: the lower end of the range that is not widened
    scale = (high - low) / 15
    textbook = ((x - low) / scale).round().clamp(0, 15) * scale + low
    assert float(textbook[0, 1]) == pytest.approx(0.2)
    grid = get("int4-channel-asym").fit(x)
    assert float(grid.values(grid.round_all(x))[0, 1]) == 0.0


def test_a_tensor_shares_one_scale_and_a_channel_does_not() -> None:
    x = np.array([[1.0, -1.0], [100.0, -50.0]], np.float32)
    assert len(set(fitted("int8-tensor", x).scale.tolist())) == 1
    assert len(set(fitted("int8-channel", x).scale.tolist())) == 2
    decoded = get("int8-tensor-asym").decode(get("int8-tensor-asym").encode(x), 2)
    assert np.abs(decoded - x).max() <= 150 / 255 / 2 * 1.0001


@pytest.mark.parametrize(
    "name", ["int4-g48", "int3-g5-asym", "int2-g7", "int8-g1-asym", "int3-channel", "int4-tensor-asym"]
)
def test_any_group_size_and_row_length_survives_encoding(name: str) -> None:
    fmt = get(name)
    columns = 2 * fmt.block if fmt.block else 13
    x = np.random.default_rng(60).standard_normal((3, columns)).astype(np.float32)
    data = fmt.encode(x)
    assert data.shape == (3, fmt.row_bytes(columns))
    blocks = torch.from_numpy(x).reshape(-1, fmt.block or columns)
    grid = fmt.fit(blocks)
    expected = grid.values(grid.round_all(blocks)).reshape(3, columns).numpy()
    np.testing.assert_array_equal(fmt.decode(data, columns), expected)


def test_groups_that_do_not_divide_the_row_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"50 columns do not divide into blocks of 32 \(int4-g32-sym\)"):
        get("int4-g32").encode(np.ones((2, 50), np.float32))


def test_unknown_searches_are_refused() -> None:
    with pytest.raises(SchemeError, match="search must be one of best, ggml, got 'fast'"):
        get("int4-g32").encode(np.ones((2, 64), np.float32), search="fast")


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), st.randoms(use_true_random=False))
def test_streams_of_bits_unpack_to_what_was_packed(bits: int, count: int, random: object) -> None:
    rng = np.random.default_rng(getattr(random, "getrandbits")(32))  # noqa: B009 (an object to the type checker)
    codes = torch.from_numpy(rng.integers(0, 1 << bits, (3, count), dtype=np.int32))
    packed = pack_stream(codes, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    assert torch.equal(unpack_stream(packed, bits, count), codes)


def test_streams_start_at_the_low_bits() -> None:
    assert pack_stream(torch.tensor([[1, 2, 3]], dtype=torch.int32), 3).tolist() == [[0b11_010_001, 0]]


@pytest.mark.parametrize("kind", ["sym", "asym"])
@pytest.mark.parametrize("scale", ["f16", "bf16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@settings(deadline=None)
@given(values=st.lists(st.floats(-60_000, 60_000, width=32), min_size=1, max_size=12))
@example(values=[1e-45])
@example(values=[4e-7, -1e-7])  # scales below the normal numbers of binary16
@example(values=[60_000.0, -60_000.0])
def test_scales_of_sixteen_bits_are_rounded_before_codes_are_chosen(
    bits: int, scale: str, kind: str, values: list[float]
) -> None:
    x = np.array([values], np.float32)
    grid = fitted(f"int{bits}-channel-{kind}-{scale}", x)
    stored = {"f16": torch.float16, "bf16": torch.bfloat16}[scale]
    assert torch.equal(grid.scale.to(stored).to(torch.float32), grid.scale)
    step = float(grid.scale[0])
    assert np.isfinite(step)
    assert step > 0
    decoded = grid.values(grid.round_all(torch.from_numpy(x))).numpy()
    cut = 2.0**-8 * (2**bits - 1)  # steps that an end may lie beyond the codes because the scale was rounded down
    assert np.abs(decoded.astype(np.float64) - x).max() <= step * (0.5 + cut) + 2.0**-22 * float(np.abs(x).max())


def test_a_scale_of_binary16_is_the_nearest_one() -> None:
    grid = fitted("int4-channel-sym-f16", np.array([[-8.01, 1.0]], np.float32))
    assert float(grid.scale[0]) == float(np.float16(np.float32(8.01) / 8)) != np.float32(8.01) / 8


def test_what_binary16_scales_cannot_reach_is_refused() -> None:
    with pytest.raises(SchemeError, match=r"stores magnitudes up to 4.585e\+05, but row 0, column 1 is 5e\+05"):
        get("int4-channel-sym-f16").encode(np.array([[1.0, 5e5]], np.float32))


@pytest.mark.parametrize("name", ["int4-channel-asym", "int8-channel-asym-f16", "int2-channel-sym-bf16"])
def test_one_row_of_an_odd_number_of_bytes_is_decoded(name: str) -> None:
    fmt = get(name)
    x = np.linspace(-1, 1, 8, dtype=np.float32)[None]
    both = fmt.decode(fmt.encode(np.concatenate((x, x))), 8)
    np.testing.assert_array_equal(fmt.decode(fmt.encode(x), 8), both[:1])
