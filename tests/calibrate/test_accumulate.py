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
    hessian = sums.hessian()
    cross = sums.mean_cross(hessian)
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
        hessian = sums.hessian()
        found.append((hessian, sums.mean_cross(hessian), sums.importance()))
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


@pytest.mark.parametrize("columns", [1, 23, 24, 25, 70])
@pytest.mark.parametrize("stripe", [1, 8, 1024])
def test_the_mean_is_every_bit_of_that_of_the_whole_matrix(
    columns: int, stripe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulate, "STRIPE", stripe)
    monkeypatch.setattr(accumulate, "BROAD", stripe)
    sums = Sums.empty(columns, hessian=True, cross=True)
    for tokens in (7, 40, 13):
        inputs, full = data(columns, tokens)
        sums.add(inputs)
        sums.add_pair(inputs[:5], full[:5])
    assert sums.product is not None
    assert sums.lag is not None
    sums.product[0, -1] = sums.lag[0, 0] = -0.0
    sums.product[-1, 0] = torch.nan if columns > 1 else 1  # below the diagonal nothing is kept up
    upper = torch.triu(sums.product)
    upper += torch.triu(upper, 1).T
    hessian = (upper / 60).float()
    cross = hessian + (sums.lag / 15).float()
    found = sums.hessian()
    assert found is not None
    assert found.numpy().tobytes() == hessian.numpy().tobytes()
    assert sums.mean_cross(found).numpy().tobytes() == cross.numpy().tobytes()  # type: ignore[union-attr]


def test_means_take_little_memory_beside_themselves() -> None:
    columns = 4 * accumulate.BROAD
    sums = Sums.empty(columns, hessian=True, cross=True)
    sums.tokens = sums.paired = 1
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sums.mean_cross(sums.hessian())
    largest = max(event.self_cpu_memory_usage for event in profile.events() or ())
    assert largest == 4 * columns**2, "what is returned, and nothing of float64 in that size"


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
    hessian = sums.hessian()
    same = sums.mean_cross(hessian)
    assert hessian is not None
    assert same is not None
    np.testing.assert_array_equal(same.numpy(), hessian.numpy())
    before = hessian.clone()
    sums.add_pair(inputs[:40], full[:40])
    x, f = inputs.double().numpy(), full.double().numpy()
    wanted = x.T @ x / 100 + (f - x)[:40].T @ x[:40] / 40
    cross = sums.mean_cross(hessian)
    assert cross is not None
    np.testing.assert_allclose(cross.numpy(), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hessian.numpy(), before.numpy())
