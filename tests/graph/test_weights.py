from __future__ import annotations

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.corrections.rounding import round_with_statistics
from tersor.graph.placement.sites import Site
from tersor.graph.scheme import Scheme
from tersor.graph.weights import as_matrix, rounded_weight

from .conftest import images, quantized, resnet

pytest.importorskip("torch", reason="rounding methods are of torch: pip install 'tersor[torch]'")


def site(axis: int | None, bits: int = 8) -> Site:
    return Site("w", "weight", Scheme(bits, signed=True, symmetric=True, axis=axis), ("node",), "w")


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4), (5, 1, 7), (3, 4, 5, 2, 2)])
@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_a_rounded_weight_is_nearest_on_the_grid_of_each_output(
    shape: tuple[int, ...], axis: int | None, bits: int
) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = rounded_weight(weight, site(axis, bits))
    assert found.codes.shape == shape
    assert found.codes.dtype == np.int8
    assert np.abs(found.codes).max() <= 1 << (bits - 1)
    assert not found.quantizer.zero_point.any()
    assert found.quantizer.scale.shape == (() if axis is None else (shape[axis],))
    np.testing.assert_array_equal(found.codes, found.quantizer.codes(weight))
    off = np.abs(found.values - weight) / np.expand_dims(
        found.quantizer.scale, tuple(p for p in range(len(shape)) if p != axis)
    )
    inside = np.abs(found.codes) < (1 << (bits - 1)) - 1
    assert off[inside].max() <= 0.5 + 1e-4


def test_an_output_of_zeros_and_a_tiny_one_keep_a_scale_that_can_be_divided_by() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1] = 1e-42
    weight[2] = [1, -2, 3, 4]
    found = rounded_weight(weight, site(0))
    assert (found.quantizer.scale > 0).all()
    assert np.isfinite(found.values).all()
    np.testing.assert_array_equal(found.values[0], 0)
    np.testing.assert_allclose(found.values[2], weight[2], atol=4 / 127)


def test_a_matrix_has_a_row_for_each_output() -> None:
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(as_matrix(weight, 1)[2], weight[:, 2].reshape(-1))
    np.testing.assert_array_equal(as_matrix(weight, None), weight.reshape(1, -1))


def test_a_method_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(SchemeError, match=r"no method 'nearest' for weights; there are .*rtn"):
        rounded_weight(np.ones((2, 2), np.float32), site(0), "nearest")


def test_all_weights_of_a_placement_are_rounded() -> None:
    made = quantized(resnet().net(), images(2, 3, 16, 16))
    again = round_with_statistics(made.source, made.placement, "rtn", {})
    assert set(again) == set(made.placement.weights) == set(made.weights)
    for name, weight in again.items():
        np.testing.assert_array_equal(weight.codes, made.weights[name].codes)
