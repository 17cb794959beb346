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
MOVES = {"place": 0.3, "shift": 0.1, "lower": 0.1, "multiple": 1.7, "minimum": 1.7}


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
def test_places_start_between_their_codes_and_the_weights(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    fmt = get(name)
    data = torch.from_numpy(fmt.encode(weight))
    near = torch.from_numpy(weight)
    one, on_codes = TrainableMatrix.of(fmt, data, COLUMNS, near), TrainableMatrix.of(fmt, data, COLUMNS)
    torch.testing.assert_close(one.values(), on_codes.values(), rtol=0, atol=0)
    if name not in TWO_ZEROS:
        np.testing.assert_array_equal(one.packed().numpy(), data.numpy())
    lattice = on_codes.grid.lattice
    assert lattice is not None
    step, offset = (part[..., None] for part in (lattice.step, lattice.offset))
    meant = (one.parameters["place"].reshape(*lattice.step.shape, -1) * step - offset).reshape(ROWS, COLUMNS)
    before, after = (on_codes.values() - near).abs(), (meant - near).abs()
    assert bool((after <= before + 1e-5).all())
    assert float(after.mean()) < 0.75 * float(before.mean())


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_0", "q4_k", "iq4_xs", "nf4", "int3-g64-sym", "int2-g64-asym-f16"])
@pytest.mark.parametrize("is_moved", [False, True])
def test_gradients_are_the_slopes_of_what_is_stored_with_codes_held(name: str, is_moved: bool) -> None:
    """A value is step · level - offset: linear in each scale, and a place within the range moves it by the step."""
    one = moved(matrix(name, 3), 4) if is_moved else matrix(name, 3)
    leaves = {what: values.clone().requires_grad_() for what, values in one.parameters.items()}
    towards = torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(2))
    torch.autograd.backward((replace(one, parameters=leaves).values() * towards).sum())
    grid = TrainableMatrix.of(get(name), one.packed(), COLUMNS).grid
    lattice = grid.lattice
    assert lattice is not None
    blocks, groups = lattice.step.shape
    step, offset, zero = (part[..., None] for part in (lattice.step, lattice.offset, lattice.zero))
    place = one.parameters["place"].reshape(blocks, groups, -1)
    low, high = (-zero, lattice.levels - 1 - zero)
    if lattice.table is not None:
        low, high = lattice.table.min(), lattice.table.max()
    inside = (place > low - 0.5) & (place < high + 0.5)
    end = towards.reshape(blocks, groups, -1)
    found = {what: leaf.grad for what, leaf in leaves.items()}
    assert found["place"] is not None
    torch.testing.assert_close(found["place"], (end * inside * step).reshape(ROWS, COLUMNS))
    values = one.values().reshape(blocks, groups, -1)
    wanted = {"shift": (end * (values + offset)).sum((1, 2)), "lower": -(end * offset).sum((1, 2))}
    for what in wanted.keys() & leaves.keys():
        slope = found[what]
        assert slope is not None
        assert float(slope.abs().max()) > 0
        # Scales are stored in half precision; the slope is that of the scale before it is rounded.
        torch.testing.assert_close(slope.reshape(-1), wanted[what].reshape(-1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_settling_changes_no_value_and_little_noise_does_not_either(name: str) -> None:
    one = moved(matrix(name))
    values, away = one.values(), one.off_grid()
    packed = one.packed().numpy()
    one.settle()
    np.testing.assert_array_equal(one.values().numpy(), values.numpy())
    np.testing.assert_array_equal(one.packed().numpy(), packed)
    torch.testing.assert_close(one.off_grid(), away / 2, rtol=0, atol=2e-5 * float(one.parameters["place"].abs().max()))
    lattice = one.grid.lattice
    assert lattice is not None
    for what, parameter in one.parameters.items():
        if what in {"multiple", "minimum"}:
            parameter.add_(0.45 * torch.sign(torch.randn(parameter.shape)))
        if what == "place" and lattice.table is None:
            parameter.add_(0.24 * torch.sign(torch.randn(parameter.shape)))
    np.testing.assert_array_equal(one.values().numpy(), values.numpy())


def test_places_settle_on_their_codes() -> None:
    one = matrix("q2_k")
    assert float(one.off_grid().abs().max()) == 0
    away = replace(one, parameters={**one.parameters, "place": one.parameters["place"] + 0.01})
    assert 0 < float(away.off_grid().abs().max()) <= 0.0101


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_a_format_without_a_lattice_is_refused_by_name(name: str) -> None:
    with pytest.raises(SchemeError, match=f"those of {name} are bits of a float"):
        check_trainable(get(name))
