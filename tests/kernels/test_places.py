"""What places round to is as the definition has it on every instruction set, and slopes are those of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersor.core.errors import ShapeError
from tersor.kernels import places
from tersor.kernels.reference import places as definition

SHAPES = [(1, 1), (5, 3), (7, 16), (40, 19), (33, 32), (600, 128)]
KERNELS = places


def case(groups: int, width: int, levels: int) -> tuple[Tensor, ...]:
    """Places within the range, far beyond it and in the middle of two codes; groups that are all zeros."""
    rng = torch.Generator().manual_seed(groups * width + levels)
    zero = torch.randint(0, levels, (groups, 1), generator=rng).float()
    place = torch.rand(groups, width, generator=rng) * (levels + 2) - 1.5 - zero
    place[:, ::4] = place[:, ::4].round() + 0.5
    place[::5, 0] = 1e30
    step, offset = (torch.randn(groups, 1, generator=rng) for _ in range(2))
    step[::6] = 0
    return place, step, offset, zero


@pytest.mark.parametrize(("groups", "width"), SHAPES)
@pytest.mark.parametrize("levels", [2, 4, 256])
def test_values_are_those_of_the_nearest_code(kernel: str, groups: int, width: int, levels: int) -> None:
    place, step, offset, zero = case(groups, width, levels)
    made = places.values(place, step, offset, zero, levels)
    assert torch.equal(made, definition.values(place, step, offset, zero, levels)), kernel
    codes = torch.arange(levels, dtype=torch.float32)
    nearest = (place[..., None] + zero[..., None] - codes).abs().amin(-1)  # whichever, where two are as near
    found = torch.where(step != 0, (made + offset) / step, definition.level_of(place, zero, levels))
    inside = (place > -zero) & (place < levels - 1 - zero)
    torch.testing.assert_close((found - place).abs()[inside], nearest[inside], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("groups", "width"), SHAPES)
@pytest.mark.parametrize("levels", [2, 4, 256])
def test_slopes_are_those_that_autograd_finds(kernel: str, groups: int, width: int, levels: int) -> None:
    place, step, offset, zero = case(groups, width, levels)
    gradient = torch.randn(place.shape, generator=torch.Generator().manual_seed(1))
    p, s, o = (array.double().requires_grad_() for array in (place, step, offset))
    rounded = (p.round() - p).detach() + p  # straight through, then a clamp with autograd's own slope
    low, high = -zero.double(), levels - 1 - zero.double()
    beyond = (p < low - 0.5) | (p > high + 0.5)
    within = rounded + (rounded.clamp(low, high) - rounded).detach()
    level = torch.where(beyond, rounded.detach().clamp(low, high), within)
    ((level * s - o) * gradient).sum().backward()  # type: ignore[no-untyped-call]
    on_edge = (place == -zero - 0.5) | (place == levels - 0.5 - zero)
    found = places.slopes(gradient, place, step, zero, levels)
    assert p.grad is not None
    assert s.grad is not None
    assert o.grad is not None
    torch.testing.assert_close(found[0].double()[~on_edge], p.grad[~on_edge], rtol=1e-6, atol=1e-7)
    assert not found[0][on_edge].any(), "what lies on the edge of the range is beyond it"
    for made, wanted in ((found[1], s.grad), (found[2], o.grad)):
        torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-4 * levels)


@pytest.mark.parametrize("levels", [4, 256])
def test_threads_change_no_bit(kernel: str, levels: int) -> None:
    place, step, offset, zero = case(3000, 19, levels)
    gradient = torch.randn(place.shape, generator=torch.Generator().manual_seed(1))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made = places.values(place, step, offset, zero, levels)
            found.append((made, *places.slopes(gradient, place, step, zero, levels)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True)), kernel


def test_a_training_that_has_gone_wrong_shows(kernel: str) -> None:
    """A place that is not a number stays one in the values, so that no loss looks finite."""
    place, step, offset, zero = case(7, 16, 4)
    place[2, 3] = float("nan")
    made = places.values(place, step, offset, zero, 4)
    assert made.isnan().sum() == 1, kernel
    assert made[2, 3].isnan()
    assert places.slopes(torch.ones_like(place), place, step, zero, 4)[1].isnan().nonzero().tolist() == [[2, 0]]


def test_other_numbers_and_transposed_ones_are_taken(kernel: str) -> None:
    place, step, offset, zero = case(16, 16, 4)
    gradient = torch.randn(place.shape, generator=torch.Generator().manual_seed(1))
    straight = places.values(place, step, offset, zero, 4), *places.slopes(gradient, place, step, zero, 4)
    turned = place.T.contiguous().T
    turned_gradient = gradient.T.contiguous().T
    again = places.values(turned, step, offset, zero, 4), *places.slopes(turned_gradient, turned, step, zero, 4)
    for a, b in zip(straight, again, strict=True):
        torch.testing.assert_close(a, b, msg=kernel)
    assert places.values(place.double(), step.double(), offset.double(), zero.double(), 4).dtype == torch.float64


def test_what_does_not_belong_together_is_refused() -> None:
    place, step, offset, zero = case(5, 3, 4)
    with pytest.raises(ShapeError, match=r"steps and zeros \[groups, 1\], got \(5, 3\), \(4, 1\)"):
        places.values(place, step[:4], offset, zero, 4)
    with pytest.raises(ShapeError, match="places"):
        places.values(place[0], step, offset, zero, 4)
    with pytest.raises(ShapeError, match="a gradient as large"):
        places.slopes(place[:, :2], place, step, zero, 4)
