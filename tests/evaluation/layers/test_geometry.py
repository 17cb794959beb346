from __future__ import annotations

import numpy as np
import pytest

from tersor.evaluation.layers.geometry import geometry_of, nearest_distances
from tersor.formats import FORMATS

from .conftest import heavy, rounded


def test_values_beyond_the_last_level_by_more_than_half_a_step_are_clipped() -> None:
    found = np.array([[-8, -1, 0, 1, 7, 7, 0, 0] * 4], np.float32)
    wanted = found.copy()
    wanted[0, [4, 5, 12]] = [7.4, 7.6, -8.9]  # the last would have stood at -8, and lies within its half step
    found[0, 12] = 7
    assert geometry_of("Q4_0", 32).clipped(found, wanted) == 2


def test_floats_and_blocks_of_one_value_are_never_clipped() -> None:
    ones = np.ones((2, 32), np.float32)
    assert geometry_of("F16", 32).clipped(ones, 5 * ones) == 0
    assert geometry_of("Q8_0", 32).clipped(ones, 5 * ones) == 0


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q6_k", "iq4_nl", "mxfp4", "nvfp4"])
def test_searches_that_reach_the_largest_value_clip_little(name: str) -> None:
    values = heavy(64, 512) / np.float32(4)  # within what nvfp4 reaches
    geometry = geometry_of(name, 512)
    found = rounded(values, name, search="ggml").reshape(-1, geometry.inner)
    assert geometry.clipped(found, values.reshape(-1, geometry.inner)) < 0.02 * values.size


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if "gguf" in form.containers])
def test_blocks_consist_of_whole_groups(name: str) -> None:
    geometry = geometry_of(name.upper(), 512)
    assert geometry.block % geometry.inner == 0
    assert 512 % geometry.block == 0


def test_unknown_formats_and_odd_columns_have_runs() -> None:
    assert geometry_of("IQ2_XXS", 256).inner == 32
    assert geometry_of("F32", 172).inner == 172
    assert geometry_of("F32", 40).inner == 8


def test_nearest_distances_are_those_of_a_search_one_by_one() -> None:
    found, wanted = heavy(5, 16, 1), heavy(5, 16, 2)
    slow = [[min(abs(x - y) for y in row) for x in other] for row, other in zip(found, wanted, strict=True)]
    np.testing.assert_allclose(nearest_distances(found, wanted, is_even=False), slow, rtol=1e-6)


def test_even_levels_go_on_between_those_that_are_found() -> None:
    found = np.array([[-1.0, -0.5, 0.0, 2.0]], np.float32)
    wanted = np.array([[-3.0, 0.9, 1.25, 2.5]], np.float32)
    np.testing.assert_allclose(nearest_distances(found, wanted, is_even=True), [[2.0, 0.1, 0.25, 0.5]], atol=1e-6)
