"""The native product equals its definition bit for bit, whatever the instruction set, threads and number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.weights import PackedWeight, Real, pack_weight
from tersor.kernels.on_torch import on_torch
from tersor.kernels.reference import linear as definition
from tersor.kernels.reference.linear import Digits

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Bits = Literal[4, 8]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN in the same places."""
    return (
        a.dtype == b.dtype
        and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        and torch.equal(a.isnan(), b.isnan())
    )


def test_without_compiled_kernels_the_reference_multiplies(
    matrix: Callable[..., Arrays], activations: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = pack_weight(*matrix(24, 64, 32, 4), bits=4)
    x = activations(6, 64, torch.bfloat16).reshape(2, 3, 64)
    expected = multiply(x, weight, None, 2)
    monkeypatch.setenv("TERSOR_KERNELS", "reference")
    on_torch.cache_clear()
    try:
        assert on_torch() is None
        assert torch.equal(multiply(x, weight, None, 2), expected)
    finally:
        on_torch.cache_clear()


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize(
    ("rows", "columns", "group", "bits", "symmetric", "real", "per_token"),
    [
        (16, 32, 32, 4, True, "f16", False),
        (70, 96, 32, 4, False, "bf16", False),
        (33, 256, 128, 4, True, "f32", True),
        (40, 192, 64, 4, False, "f16", True),
        (100, 272, 16, 4, True, "bf16", False),
        (50, 208, 208, 4, False, "f32", False),
        (1, 16, 16, 8, True, "f32", False),
        (64, 304, 304, 8, True, "bf16", True),
        (47, 128, 32, 8, False, "f16", False),
    ],
)
def test_native_is_bit_exact(  # noqa: PLR0917 (a row of the table above)
    isa: str,
    matrix: Callable[..., Arrays],
    activations: Callable[..., torch.Tensor],
    rows: int,
    columns: int,
    group: int,
    bits: Bits,
    digits: Digits,
    real: Real,
    *,
    symmetric: bool,
    per_token: bool,
) -> None:
    arrays = matrix(rows, columns, group, bits, symmetric=symmetric, real=real)
    weight = pack_weight(*arrays, bits=bits, real=real)
    bias = None if rows % 2 else torch.linspace(-3, 3, rows)
    counts = ((1, torch.float32), (3, torch.bfloat16), (8, torch.float16), (23, torch.float32), (50, torch.bfloat16))
    for tokens, dtype in counts:  # of 50 some fill pairs of the widest tiles, and some are left
        x = activations(tokens, columns, dtype)
        expected = definition.multiply(x, *arrays, bias, digits=digits, per_token=per_token).to(dtype)
        assert same(multiply(x, weight, bias, digits, per_token), expected), (isa, tokens)


def test_neither_threads_nor_other_tokens_change_a_bit(
    matrix: Callable[..., Arrays],
    activations: Callable[..., torch.Tensor],
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = pack_weight(*matrix(500, 256, 32, 4), bits=4)
    x = activations(37, 256)
    threads(1)
    expected = torch.cat([multiply(token[None], weight) for token in x])
    for count in (1, 2, 3, 7):
        threads(count)
        assert torch.equal(multiply(x, weight), expected)
        assert torch.equal(multiply(x[5:], weight), expected[5:])
        module: Any = on_torch()
        if module is not None:
            module.use_team(0)  # threads of our own
            assert torch.equal(multiply(x, weight), expected)
            on_torch.cache_clear()


def test_a_token_that_is_no_number_spoils_itself_alone(matrix: Callable[..., Arrays]) -> None:
    weight = pack_weight(*matrix(24, 64, 32, 4), bits=4)
    x = torch.randn(9, 64)
    expected = multiply(x, weight)
    x[3, 60], x[7, 1] = float("inf"), float("nan")
    found = multiply(x, weight)
    assert bool(found[[3, 7]].isnan().all())
    kept = [token for token in range(9) if token not in (3, 7)]
    assert torch.equal(found[kept], expected[kept])


def test_activations_of_any_stride_are_taken_and_none_are_fine(matrix: Callable[..., Arrays]) -> None:
    weight = pack_weight(*matrix(24, 64, 32, 4), bits=4)
    x = torch.randn(64, 9).T
    assert torch.equal(multiply(x, weight), multiply(x.contiguous(), weight))
    assert multiply(x[:0], weight).shape == (0, 24)


def test_unpacking_gives_back_what_was_packed(matrix: Callable[..., Arrays]) -> None:
    codes, zeros, scales = matrix(45, 96, 32, 4, symmetric=False, real="bf16")
    weight = pack_weight(codes, zeros, scales, bits=4, real="bf16")
    assert all(torch.equal(a, b) for a, b in zip(weight.unpacked(), (codes, zeros, scales), strict=True))
    expected = (codes.float().reshape(45, 3, 32) - zeros[..., None]) * scales[..., None]
    assert torch.equal(weight.dequantized(), expected.reshape(45, 96))
    assert weight.nbytes == 48 * (96 // 2 + 3 * 3)
    narrow = pack_weight(codes % 4, torch.full_like(zeros, 2), scales, bits=2)  # in the space of 4 bits
    assert torch.equal(narrow.unpacked()[1], torch.full_like(zeros, 2))


def test_what_does_not_fit_is_refused(matrix: Callable[..., Arrays]) -> None:
    codes, zeros, scales = matrix(24, 64, 32, 4)
    weight = pack_weight(codes, zeros, scales, bits=4)
    with pytest.raises(ShapeError, match=r"a weight \[24, 64\] takes .* got torch\.float32 \(2, 63\)"):
        multiply(torch.zeros(2, 63), weight)
    with pytest.raises(ShapeError, match=r"got torch\.float64"):
        multiply(torch.zeros(2, 64, dtype=torch.float64), weight)
    with pytest.raises(ShapeError, match=r"the bias must be contiguous float32 \[24\]"):
        multiply(torch.zeros(2, 64), weight, torch.zeros(23))
    with pytest.raises(ShapeError, match=r"the bias must be .* on the CPU, got torch\.float32 \(24,\) on meta"):
        multiply(torch.zeros(2, 64), weight, torch.zeros(24, device="meta"))
    with pytest.raises(ShapeError, match="codes, zeros and scales of one matrix"):
        pack_weight(codes, zeros[:, :1], scales, bits=4)
    with pytest.raises(UnsupportedError, match="64 columns in 8 groups: the kernels take groups of 16"):
        pack_weight(codes, zeros.repeat(1, 4), scales.repeat(1, 4), bits=4)
    with pytest.raises(ShapeError, match="no packed weight of 33 rows and 4 bits"):
        PackedWeight(33, 4, weight.codes, weight.scales, "f32")
    with pytest.raises(ShapeError, match=r"contiguous uint8, got torch\.int8"):
        PackedWeight(24, 4, weight.codes.to(torch.int8), weight.scales, "f32")
