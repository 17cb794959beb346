from __future__ import annotations

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.evaluation.layers.geometry import geometry_of
from tersor.evaluation.layers.rounding import RoundingTest

from .conftest import heavy, rounded


def places(found: Float32, wanted: Float32, name: str, step: int = 1000) -> list[tuple[int, int]]:
    test = RoundingTest(geometry_of(name, wanted.shape[1]), wanted.shape[1], 0.2)
    for start in range(0, len(wanted), step):
        test.add(start, found[start : start + step], wanted[start : start + step])
    suspect = test.suspects()
    return list(zip(suspect.rows.tolist(), suspect.columns.tolist(), strict=True))


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_slices_never_change_who_is_suspect(step: int) -> None:
    wanted = heavy(64, 512)
    found = rounded(wanted, "q4_0")
    found[9, 64:96] *= -1
    found[60, 480:512] = 0
    assert places(found, wanted, "Q4_0", step) == [(9, 64), (60, 480)]


def test_a_method_that_does_not_round_to_nearest_is_not_blamed_for_it() -> None:
    """As methods do that make up for the errors of earlier columns: every code may be off by a step or so."""
    wanted = heavy(128, 512)
    moved = wanted + 0.3 * rounded(np.abs(wanted), "q4_0") * np.random.default_rng(1).normal(size=wanted.shape)
    found = rounded(moved.astype(np.float32), "q4_0")
    assert places(found, wanted, "Q4_0") == []


def test_a_format_that_is_not_known_is_held_against_its_bound() -> None:
    wanted = heavy(64, 512)
    found = rounded(wanted, "q4_0")
    found[3, 32:64] *= -1
    assert places(found, wanted, "IQ3_S") == [(3, 32)]


def test_a_group_that_need_not_be_zero_is_suspect_and_one_that_must_be_is_not() -> None:
    wanted = heavy(32, 512)
    wanted[4, 32:64] = 0
    found = rounded(wanted, "q8_0")
    assert places(found, wanted, "Q8_0") == []
    found[5, 32:64] = 0
    assert places(found, wanted, "Q8_0") == [(5, 32)]
    found[4, 32:64] = 0.01
    assert places(found, wanted, "Q8_0") == [(4, 32), (5, 32)]
