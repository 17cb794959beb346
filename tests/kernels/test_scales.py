"""The native search for scales equals its definition bit for bit, and finds what trying everything finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tersor.core.errors import ShapeError
from tersor.kernels import codec
from tersor.kernels.reference import scales as definition
from tersor.kernels.scales import search_scales

SHRINKS = (1.0, 0.9, 0.75, 0.5)
NATIVE = codec.native()


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, choose_isa: Callable[[str], None]) -> str:
    """Every instruction set that this processor has."""
    name: str = request.param
    choose_isa(name)
    return name


def problem(groups: int, width: int, levels: int) -> tuple[torch.Tensor, ...]:
    """Groups of a matrix of three groups a row, some of zeros and some with an outlier, and unequal importance."""
    rng = torch.Generator().manual_seed(groups * width)
    x = torch.randn(groups, width, generator=rng)
    x[::5] = 0
    x[1::3, 0] *= 20
    importance = torch.rand(3 * width, generator=rng) ** 4
    importance[width : 2 * width] = 0
    zero = torch.randint(0, levels, (groups,), generator=rng).float()
    return x, importance, x.abs().amax(1) / levels + 1e-6, zero


@pytest.mark.parametrize(("groups", "width"), [(3, 1), (48, 7), (51, 32), (900, 128)])
@pytest.mark.parametrize("levels", [4, 16, 256])
def test_native_is_bit_exact(isa: str, groups: int, width: int, levels: int) -> None:
    x, importance, scale, zero = problem(groups, width, levels)
    expected = definition.search_scales(x, importance, scale, zero, torch.tensor(SHRINKS), levels)
    for threads in (1, 2, 3):
        found = search_scales(x, importance, scale, zero, SHRINKS, levels, threads=threads)
        assert torch.equal(found, expected), isa


def error_of(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, levels: int) -> torch.Tensor:
    """Weighted squared error of rounding to the nearest code, float64 [groups]."""
    code = ((x / scale[:, None]).round() + zero[:, None]).clamp(0, levels - 1)
    return (w * ((code - zero[:, None]) * scale[:, None] - x).double().square()).sum(1)


def test_no_trial_is_better_than_what_is_found() -> None:
    x, importance, scale, zero = problem(90, 32, 16)
    w = importance.reshape(3, 32).repeat(30, 1)
    found = search_scales(x, importance, scale, zero, SHRINKS, 16, threads=1)
    least = torch.stack([error_of(x, w, scale * shrink, zero, 16) for shrink in SHRINKS]).amin(0)
    assert bool((error_of(x, w, found, zero, 16) <= least * (1 + 1e-5)).all())
    assert bool((error_of(x, w, found, zero, 16) < 0.9 * least).any())


def test_groups_that_do_not_matter_keep_their_scale() -> None:
    x, importance, scale, zero = problem(90, 32, 16)
    found = search_scales(x, importance, scale, zero, SHRINKS, 16, threads=1)
    assert torch.equal(found[1::3], scale[1::3])  # no importance
    assert torch.equal(found[::5], scale[::5])  # all zeros


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, importance, scale, zero = problem(90, 32, 16)
    with pytest.raises(ShapeError, match="90 groups of 32"):
        search_scales(x, importance[:-1], scale, zero, SHRINKS, 16, threads=1)
    with pytest.raises(ShapeError, match="as many scales"):
        search_scales(x, importance, scale[1:], zero, SHRINKS, 16, threads=1)
