from __future__ import annotations

import itertools

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.corrections.rounding import (
    round_with_statistics,
    rounded_rows,
    rounded_with_statistics,
    wants_statistics,
)
from tersor.graph.corrections.statistics import InputStatistics
from tersor.graph.placement.engines import ENGINES
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import Site
from tersor.graph.scheme import Precision, Scheme
from tersor.graph.simplify import simplified
from tersor.graph.weights import rounded_weight

from ..conftest import resnet

torch = pytest.importorskip("torch", reason="rounding methods are of torch: pip install 'tersor[torch]'")


def site(bits: int) -> Site:
    return Site("w", "weight", Scheme(bits, signed=True, symmetric=True, axis=0), ("node",), "w")


def known(groups: int, columns: int, seed: int = 0) -> InputStatistics:
    """Return the statistics of inputs that depend on one another, as those behind a Relu do."""
    random = np.random.default_rng(seed)
    rows = np.maximum(random.standard_normal((groups, 200, columns)) @ random.standard_normal((columns, columns)), 0)
    hessian = rows.transpose(0, 2, 1) @ rows / 200
    return InputStatistics(hessian.astype(np.float32), rows.mean(axis=1).astype(np.float32), 200)


def lost(weight: np.ndarray, found: np.ndarray, hessians: np.ndarray) -> np.ndarray:
    error = (weight - found).astype(np.float64)
    return np.asarray(np.einsum("ri,rij,rj->r", error, hessians.astype(np.float64), error))


@pytest.mark.parametrize("groups", [1, 2, 40])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_weight_that_knows_its_inputs_loses_less_of_every_output_group(groups: int, bits: int) -> None:
    weight = np.random.default_rng(1).standard_normal((2 * groups, 3, 3, 3)).astype(np.float32)
    statistics = known(groups, 27)
    hessians = np.repeat(statistics.hessian, 2, axis=0)
    plain = rounded_weight(weight, site(bits))
    found = rounded_with_statistics(weight, site(bits), "gptq", statistics)
    assert found.codes.shape == weight.shape
    assert found.codes.dtype == np.int8
    assert found.quantizer.scale.shape == (2 * groups,)
    rows = weight.reshape(2 * groups, -1)
    ours = lost(rows, found.values.reshape(rows.shape), hessians).sum()
    assert ours < 0.8 * lost(rows, plain.values.reshape(rows.shape), hessians).sum()


def test_groups_are_rounded_as_if_each_were_an_operator_of_its_own() -> None:
    weight = np.random.default_rng(1).standard_normal((6, 2, 3, 3)).astype(np.float32)
    statistics = known(3, 18)
    found = rounded_with_statistics(weight, site(4), "gptq", statistics)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = rounded_weight(weight[rows], site(4), "gptq", hessian=torch.from_numpy(statistics.hessian[group]))
        np.testing.assert_array_equal(found.codes[rows], alone.codes)
        np.testing.assert_array_equal(found.quantizer.scale[rows], alone.quantizer.scale)


def test_rows_with_a_hessian_each_come_near_the_best_of_all_codes() -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((12, 4)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 4).astype(np.float32)
    hessians = known(12, 4).hessian
    codes = rounded_rows(weight, hessians, scales, -4, 3)
    damped = hessians + 0.01 * np.trace(hessians, axis1=1, axis2=2)[:, None, None] / 4 * np.eye(4)
    ours = lost(weight, codes * scales[:, None], damped)
    plain = lost(weight, np.clip(np.rint(weight / scales[:, None]), -4, 3) * scales[:, None], damped)
    every = np.array(list(itertools.product(range(-4, 4), repeat=4)))
    best = [
        lost(w, every * s, h[None].repeat(len(every), 0)).min() for w, s, h in zip(weight, scales, damped, strict=True)
    ]
    assert (ours <= plain * (1 + 1e-5)).all()
    assert ours.sum() < 1.6 * sum(best), "all codes tried"
    assert ours.sum() < 0.7 * plain.sum()


def test_rows_of_zeros_stay_zeros() -> None:
    assert not rounded_rows(
        np.zeros((2, 9), np.float32), np.zeros((2, 9, 9), np.float32), np.ones(2, np.float32), -8, 7
    ).any()


def test_a_method_without_a_hessian_gets_none() -> None:
    weight = np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32)
    found, plain = rounded_with_statistics(weight, site(4), "rtn", known(1, 18)), rounded_weight(weight, site(4))
    np.testing.assert_array_equal(found.codes, plain.codes)
    assert [wants_statistics(method) for method in ("rtn", "hqq", "gptq", "best")] == [False, False, True, True]
    with pytest.raises(SchemeError, match="no method 'nearest'"):
        wants_statistics("nearest")


def test_a_method_that_needs_no_statistics_is_taken_without_them() -> None:
    net = simplified(resnet().net())
    placement = place(net, ENGINES["onnxruntime"], Precision(bits=4))
    found, plain = (round_with_statistics(net, placement, method, {}) for method in ("hqq", "rtn"))
    needing = round_with_statistics(net, placement, "gptq", {})
    assert any(not np.array_equal(found[name].quantizer.scale, plain[name].quantizer.scale) for name in found)
    for name, weight in needing.items():
        np.testing.assert_array_equal(weight.codes, plain[name].codes)
