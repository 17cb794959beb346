"""The definition itself: against plain float64 arithmetic, with the error that its docstring lets one derive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tersor.kernels.reference import linear as definition
from tersor.kernels.reference.linear import SMALLEST, TOPS, Digits

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("per_token", [False, True], ids=["groups", "tokens"])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_the_product_is_as_near_as_half_a_step_of_each_activation_allows(
    matrix: Callable[..., Arrays], bits: int, digits: Digits, *, symmetric: bool, per_token: bool
) -> None:
    codes, zeros, scales = matrix(20, 96, 32, bits, symmetric=symmetric)
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    bias = torch.linspace(-1, 1, 20)
    weight = (codes.double().reshape(20, 3, 32) - zeros[..., None]) * scales[..., None]
    exact = x.double() @ weight.reshape(20, 96).T + bias
    found = definition.multiply(x, codes, zeros, scales, bias, digits=digits, per_token=per_token)
    largest = x.double().abs().reshape(7, 1, -1).amax(2) if per_token else x.double().abs().reshape(7, 3, 32).amax(2)
    half_step = (largest / TOPS[digits] / 2).expand(7, 3)
    bound = half_step @ weight.abs().sum(2).T + 1e-5 * (x.double().abs() @ weight.reshape(20, 96).T.abs())
    assert bool(((found - exact).abs() <= bound).all())
    if digits == 1:
        assert float((found - exact).abs().max()) > 1e-4  # the bound is not met by chance: something was rounded


def test_codes_of_two_digits_reach_their_ends_and_round_half_to_even() -> None:
    top = TOPS[2]
    codes, scale = definition.quantize_activations(torch.tensor([[top, -top, 0.5, 1.5, 2.5, -0.5]]), 6, 2)
    assert scale.tolist() == [[1.0]]
    assert codes.tolist() == [[top, -top, 0, 2, 2, 0]]


@pytest.mark.parametrize(("value", "scale"), [(float("nan"), "nan"), (float("-inf"), "nan"), (SMALLEST / 2, "0.0")])
def test_what_has_no_scale_gives_nan_or_zero_and_leaves_other_groups_alone(value: float, scale: str) -> None:
    x = torch.ones(2, 64)
    x[0, 3] = value
    x[0, :32] *= abs(value) if abs(value) < 1 else 1
    codes, scales = definition.quantize_activations(x, 32, 1)
    assert str(float(scales[0, 0])) == scale
    assert codes[0, :32].abs().sum() == 0
    assert scales[0, 1] == scales[1, 0] == scales[1, 1]
    assert bool((codes[0, 32:] == 127).all())


@pytest.mark.parametrize(("bits", "rows", "columns"), [(4, 1, 8), (4, 17, 64), (8, 16, 8), (8, 40, 24)])
def test_packing_inverts(bits: int, rows: int, columns: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    packed = definition.pack_codes(codes, bits)
    assert packed.numel() == -(-rows // 16) * 16 * columns * bits // 8
    assert torch.equal(definition.unpack_codes(packed, bits, rows), codes)
    values = torch.arange(rows * 3.0).reshape(rows, 3)
    assert torch.equal(definition.unpack_blocks(definition.pack_blocks(values), rows), values)


def test_bytes_lie_where_the_docstring_says() -> None:
    codes = torch.zeros(20, 16, dtype=torch.uint8)
    codes[17, 13] = 9  # block 1, row 1; second run of 8 columns, its second half, column 1 of 4
    packed = definition.pack_codes(codes, 4)
    assert packed.nonzero().tolist() == [[1, 64 + 1 * 4 + 1]]
    assert packed[1, 69] == 9 << 4
    packed = definition.pack_codes(codes, 8)
    assert packed.nonzero().tolist() == [[1, 3 * 64 + 1 * 4 + 1]]
