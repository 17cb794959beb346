from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.calibrate import accumulate
from tersor.calibrate.accumulate import Sums


def data(columns: int = 24, tokens: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(tokens, columns, generator=generator)
    return inputs, inputs + 0.1 * torch.randn(tokens, columns, generator=generator)


@pytest.mark.parametrize("stripe", [1, 7, 24, 1024])
def test_sums_are_those_of_the_definition(stripe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "STRIPE", stripe)
    monkeypatch.setattr(accumulate, "BROAD", stripe)
    inputs, full = data()
    sums = Sums.empty(24, hessian=True, cross=True)
    for start in range(0, 100, 33):
        sums.add(inputs[start : start + 33])
        sums.add_pair(inputs[start : start + 33], full[start : start + 33])
    x, f = inputs.double().numpy(), full.double().numpy()
    assert sums.tokens == 100
    hessian, cross = sums.hessian(), sums.mean_cross()
    assert hessian is not None
    assert cross is not None
    np.testing.assert_allclose(hessian.numpy(), x.T @ x / 100, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hessian.numpy(), hessian.numpy().T)
    np.testing.assert_allclose(cross.numpy(), f.T @ x / 100, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.importance().numpy(), (x**2).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(sums.importance().numpy(), hessian.diagonal().numpy())


@pytest.mark.parametrize("stripe", [7, 1024])
def test_residuals_and_squares_alone_are_those_of_the_definition(stripe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "BROAD", stripe)
    inputs, difference = data()
    difference = difference[:, :17]
    sums = Sums.empty(24, hessian=False, cross=False)
    for start in range(0, 100, 33):
        part = inputs[start : start + 33]
        sums.add(part)
        sums.add_pair(part, part, difference[start : start + 33])
    residual, x = sums.mean_residual(), inputs.double().numpy()
    assert residual is not None
    np.testing.assert_allclose(residual.numpy(), difference.double().numpy().T @ x / 100, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.importance().numpy(), (x**2).mean(axis=0), rtol=1e-7)


@pytest.mark.parametrize("chunk", [1, 9, 50])
def test_chunks_change_nothing_beyond_the_rounding_of_products(chunk: int) -> None:
    inputs, full = data(tokens=4000)
    found = []
    for size in (4000, chunk * 40):
        sums = Sums.empty(24, hessian=True, cross=True)
        for start in range(0, 4000, size):
            sums.add(inputs[start : start + size])
            sums.add_pair(inputs[start : start + size], full[start : start + size])
        found.append((sums.hessian(), sums.mean_cross(), sums.importance()))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=2e-7)


def test_nothing_seen_has_no_hessian_and_no_importance() -> None:
    sums = Sums.empty(8, hessian=True, cross=False)
    sums.add(torch.empty(0, 8))
    assert (sums.tokens, sums.hessian(), sums.mean_cross()) == (0, None, None)
    assert not sums.importance().any()


def test_the_largest_values_are_those_of_all_chunks() -> None:
    inputs, _ = data()
    sums = Sums.empty(24, hessian=False, cross=False, peaks=True)
    for start in range(0, len(inputs), 9):
        sums.add(inputs[start : start + 9])
    assert sums.peaks is not None
    np.testing.assert_array_equal(sums.peaks.numpy(), np.abs(inputs.numpy()).max(axis=0))
    assert Sums.empty(24, hessian=True, cross=True).peaks is None


def test_nan_is_seen() -> None:
    sums = Sums.empty(8, hessian=False, cross=False)
    sums.add(torch.ones(3, 8))
    assert sums.is_finite()
    sums.add(torch.full((1, 8), float("nan")))
    assert not sums.is_finite()


def test_all_inputs_tell_of_themselves_and_pairs_of_what_they_lag_behind() -> None:
    inputs, full = data()
    sums = Sums.empty(24, hessian=True, cross=True)
    sums.add(inputs)
    same = sums.mean_cross()
    assert same is not None
    np.testing.assert_array_equal(same.numpy(), sums.hessian().numpy())  # type: ignore[union-attr]
    sums.add_pair(inputs[:40], full[:40])
    x, f = inputs.double().numpy(), full.double().numpy()
    wanted = x.T @ x / 100 + (f - x)[:40].T @ x[:40] / 40
    np.testing.assert_allclose(sums.mean_cross().numpy(), wanted, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
