"""Matrices trained on their grid: what they decode to is what is stored, and gradients are those of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.formats import FORMATS, get
from tersor.methods.solving.trainable import TrainableMatrix, check_trainable

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

ROWS, COLUMNS = 2, 256
FLOATS = ("f32", "f16", "bf16", "fp8_e4m3", "fp8_e5m2")
NAMES = [*(name for name in FORMATS if name not in FLOATS), "int3-g64-sym", "int2-g64-asym-f16"]
TWO_ZEROS = ("mxfp4", "nvfp4")
"""Formats with two codes for 0."""
MOVES = {"weight": 0.3, "shift": 0.1, "lower": 0.1, "multiple": 1.7, "minimum": 1.7}


def matrix(name: str, seed: int = 0) -> TrainableMatrix:
    """Return a matrix of weights that are spread normally, on the grid that its own search finds."""
    weight = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    fmt = get(name)
    return TrainableMatrix.of(fmt, torch.from_numpy(fmt.encode(weight)), COLUMNS)


def moved(one: TrainableMatrix, seed: int = 1) -> TrainableMatrix:
    """Return the matrix as training might leave it: every parameter somewhere else, some far beyond the ends."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        what: values + MOVES[what] * torch.randn(values.shape, generator=generator)
        for what, values in one.parameters.items()
    }
    return replace(one, parameters=made)


@pytest.mark.parametrize("name", NAMES)
def test_training_begins_with_what_is_stored_and_stores_it_again(name: str) -> None:
    fmt = get(name)
    one = matrix(name)
    data = one.packed().numpy()
    np.testing.assert_array_equal(one.values().numpy(), fmt.decode(data, COLUMNS))
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    np.testing.assert_array_equal(fmt.decode(data, COLUMNS), fmt.decode(fmt.encode(weight), COLUMNS))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_on_is_what_the_file_decodes_to_bit_for_bit(name: str) -> None:
    one = moved(matrix(name))
    data = one.packed().numpy()
    np.testing.assert_array_equal(one.values().numpy(), get(name).decode(data, COLUMNS))
    again = TrainableMatrix.of(get(name), torch.from_numpy(data), COLUMNS)
    np.testing.assert_array_equal(again.values().numpy(), one.values().numpy())
    if name not in TWO_ZEROS:
        np.testing.assert_array_equal(again.packed().numpy(), data)
    assert (one.values() != matrix(name).values()).any()


@pytest.mark.parametrize("name", NAMES)
def test_no_code_is_nearer_than_the_one_that_is_trained_on(name: str) -> None:
    one = moved(matrix(name))
    weight = one.parameters["weight"]
    data = one.packed()
    grid = TrainableMatrix.of(get(name), data, COLUMNS).grid
    nearest = grid.values(grid.round(weight))
    ours = (one.values() - weight).abs()
    assert bool((ours <= (nearest - weight).abs() * (1 + 1e-5) + 1e-6).all())


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_0", "q4_k", "iq4_xs", "nf4", "int3-g64-sym", "int2-g64-asym-f16"])
def test_gradients_of_scales_are_the_slopes_of_the_smooth_part(name: str) -> None:
    """With codes held, values are linear in each scale; a weight within the range moves with its value."""
    one = moved(matrix(name, 3), 4)
    leaves = {what: values.clone().requires_grad_() for what, values in one.parameters.items()}
    towards = torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(2))
    torch.autograd.backward((replace(one, parameters=leaves).values() * towards).sum())
    grid = TrainableMatrix.of(get(name), one.packed(), COLUMNS).grid
    lattice = grid.lattice
    assert lattice is not None
    blocks, groups = lattice.step.shape
    width = grid.width // groups
    # A weight within its range is w + (rounding of its place) · step, so the step's slope is that rounding, held.
    step, offset = (part.double()[..., None] for part in (lattice.step, lattice.offset))
    weight, values = (part.double().reshape(blocks, groups, width) for part in (one.parameters["weight"], one.values()))
    place = torch.where(step != 0, (weight + offset) / step, 0)
    level = torch.where(step != 0, (values + offset) / step, 0)
    low, high = (-lattice.zero, lattice.levels - 1 - lattice.zero)
    if lattice.table is None:
        inside = (place > low[..., None] - 0.5) & (place < high[..., None] + 0.5) & (step != 0)
    else:
        inside = (place >= lattice.table.min()) & (place <= lattice.table.max()) & (step != 0)
    held = torch.where(inside, level - place, level)
    end = towards.double().reshape(blocks, groups, width)
    by_step = (end * held).sum(-1)
    by_offset = -(end * ~inside).sum(-1)
    assert leaves["weight"].grad is not None
    wanted = (end * inside).reshape(ROWS, COLUMNS)
    torch.testing.assert_close(leaves["weight"].grad.double(), wanted)

    def smooth(change: float) -> float:
        """Return the sum along `towards` after every block's scale grew by a share, codes and roundings held."""
        grown = lattice.step.double() * (1 + change)
        return float((by_step * grown).sum())

    found = leaves["shift"].grad
    assert found is not None
    slope = (smooth(1e-4) - smooth(-1e-4)) / 2e-4
    assert float(found.sum()) == pytest.approx(slope, rel=2e-3, abs=1e-3 * float(found.abs().sum()))
    if "lower" in leaves:
        lower = leaves["lower"].grad
        assert lower is not None
        wanted_lower = (by_offset * lattice.offset.double()).sum()
        assert float(lower.sum()) == pytest.approx(float(wanted_lower), rel=2e-3, abs=1e-3 * float(lower.abs().sum()))


def test_weights_settle_on_what_they_are_rounded_to() -> None:
    one = matrix("q2_k")
    assert float(one.off_grid().abs().max()) == 0
    away = replace(one, parameters={**one.parameters, "weight": one.parameters["weight"] + 0.01})
    assert 0 < float(away.off_grid().abs().max()) <= 0.0101


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_a_format_without_a_lattice_is_refused_by_name(name: str) -> None:
    with pytest.raises(SchemeError, match=f"those of {name} are bits of a float"):
        check_trainable(get(name))
