"""Divergence tells rounding from a broken conversion."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.evaluation.checks.corpus import PROSE
from tersor.evaluation.checks.logits import check_logits, compare, largest_divergence
from tersor.models import Model, load

from .conftest import MakeGguf


def test_float32_agrees_with_transformers(exact: Path, source: Model) -> None:
    check = check_logits(exact, source, [PROSE], error=0.0, formats={"F32"})
    assert check.status == "passed", check.problems
    assert check.numbers["same_top"] == 1
    assert check.numbers["difference_in_rms"] < 1e-3
    assert check.numbers["tokens"] > 200


def test_a_forgotten_permutation_is_far_away(forgotten: Path, source: Model) -> None:
    check = check_logits(forgotten, source, [PROSE], error=0.0, formats={"F32"})
    assert check.status == "failed"
    assert "the file is broken, not only rounded" in check.problems[0]
    assert "a float32 file must agree to 0.001 of rms" in check.problems[1]


def test_rounding_is_not_taken_for_a_fault(make_gguf: MakeGguf, source: Model) -> None:
    for file_type, error in (("q8_0", 0.006), ("q4_0", 0.07)):
        check = check_logits(make_gguf(file_type), source, [PROSE], error=error, formats={"Q8_0"})
        assert check.status == "passed", check.problems


def test_a_gguf_is_a_reference_too(exact: Path, make_gguf: MakeGguf) -> None:
    check = check_logits(make_gguf("q8_0"), load(exact), [PROSE], error=0.006, formats={"Q8_0"})
    assert check.status == "passed"
    assert "against f32.gguf" in check.detail


def test_without_transformers_it_is_skipped_with_the_remedy(
    exact: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    check = check_logits(exact, source, [PROSE], error=0.0, formats={"F32"})
    assert check.status == "skipped"
    assert "pip install 'tersor[torch]'" in check.detail


def test_divergence_is_that_of_the_definition() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])

    def first(ids: Sequence[int]) -> Float32:
        values: Float32 = np.log(np.tile(p, (len(ids), 1))).astype(np.float32) + 7
        return values

    def second(ids: Sequence[int]) -> Float32:
        padded = np.log(np.tile([*q, 0.5], (len(ids), 1)))  # one more token, which only padding knows
        values: Float32 = padded.astype(np.float32) - 3
        return values

    distance = compare(first, second, [[1, 2], [3]])
    assert distance.divergence == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert distance.same_top == 0
    assert distance.tokens == 3


def test_the_bound_grows_with_the_error_of_the_weights() -> None:
    bounds = [largest_divergence(error) for error in (0.0, 0.006, 0.07, 0.25)]
    assert bounds == sorted(bounds)
    assert largest_divergence(0.0, is_plain=True) < bounds[0]
