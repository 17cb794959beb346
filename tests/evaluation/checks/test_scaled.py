"""Scales of rows and columns are forgiven where AWQ moved them, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.metadata import MetadataEntry
from tersor.evaluation.checks import scaled
from tersor.evaluation.checks.scaled import error_beyond_scales
from tersor.evaluation.checks.tensors import check_tensors
from tersor.models import Model, ModelTensor, load

from .conftest import with_changes
from .test_tensors import changing

RANDOM = np.random.default_rng(5)


@dataclass(frozen=True)
class Held:
    values: Float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> Float32:
        return self.values.reshape(-1, self.values.shape[-1])[start:stop].copy()


def tensor(values: Float32) -> ModelTensor:
    return ModelTensor("w", values.shape, "w", 0, (), "F32", False, Held(values))


def factors(size: int) -> Float32:
    return np.exp2(RANDOM.uniform(-1.5, 1.5, size)).astype(np.float32)


def normal(*shape: int) -> Float32:
    return RANDOM.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("slice_weights", [1 << 22, 100])
def test_scales_of_rows_and_columns_are_found(slice_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled, "SLICE_WEIGHTS", slice_weights)
    source = normal(48, 96)
    moved = factors(48)[:, None] * source * factors(96)
    assert error_beyond_scales(tensor(moved), tensor(source)) < 0.02
    noise = 0.1 * normal(48, 96) * np.abs(moved).mean()
    wanted = float(np.sqrt((noise**2).sum() / ((moved + noise) ** 2).sum()))
    assert error_beyond_scales(tensor(moved + noise), tensor(source)) == pytest.approx(wanted, rel=0.1)


def test_each_expert_has_its_own() -> None:
    source = normal(3, 16, 32)
    moved = source * np.stack([factors(32) for _ in range(3)])[:, None]
    assert error_beyond_scales(tensor(moved), tensor(source)) < 0.02
    swapped = moved[[1, 0, 2]]
    assert error_beyond_scales(tensor(swapped), tensor(source)) > 0.6


def test_what_no_scales_make_is_far_off() -> None:
    source = normal(48, 96)
    moved = factors(48)[:, None] * source * factors(96)
    for other in (moved[::-1].copy(), np.roll(moved, 1, axis=1), normal(48, 96)):
        assert error_beyond_scales(tensor(other), tensor(source)) > 0.8
    assert not error_beyond_scales(tensor(moved * np.float32("nan")), tensor(source)) <= 1
    assert error_beyond_scales(tensor(np.zeros_like(source)), tensor(source)) == np.inf


def test_vectors_keep_their_signs() -> None:
    source = normal(64)
    assert error_beyond_scales(tensor(source * factors(64)), tensor(source)) == 0
    for other in (-source, np.where(np.arange(64) == 3, 0, source), source * np.float32("nan"), source * np.inf):
        assert error_beyond_scales(tensor(other.astype(np.float32)), tensor(source)) == np.inf


@pytest.mark.parametrize(("method", "status"), [("awq", "passed"), ("awq+gptq", "passed"), ("gptq", "failed")])
def test_only_a_file_that_says_awq_may_have_moved_scales(method: str, status: str, source: Model, exact: Path) -> None:
    columns = factors(64)
    artefact = load(exact)
    entry = MetadataEntry(json.dumps({"method": method}), "str")
    artefact = dataclasses.replace(artefact, metadata={**artefact.metadata, "tersor.recipe": entry})
    moved = with_changes(artefact, changing("blk.0.ffn_up.weight", lambda x: x * columns))
    moved = with_changes(moved, changing("blk.0.ffn_norm.weight", lambda x: x / columns))
    check = check_tensors(moved, source)
    assert check.status == status
    assert check.numbers["tensors_scaled"] == (2 if status == "passed" else 0)
    broken = with_changes(moved, changing("blk.1.ffn_down.weight", lambda x: x[::-1].copy()))
    check = check_tensors(broken, source)
    assert check.status == "failed"
    assert any("blk.1.ffn_down.weight differs" in problem for problem in check.problems)
