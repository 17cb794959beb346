"""Training behind ranges found at run time, on weights alone, in groups, and of tables: what is trained is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.graph.training.convert import convert
from tersor.graph.training.fake import fake_quantize_at_run_time, fake_quantize_weight
from tersor.graph.training.prepare import prepare

from ..conftest import encoder, quantized, run, sentences, sqnr
from .conftest import torch

KINDS: dict[str, dict[str, Any]] = {
    "static": {},
    "dynamic": {"activations": "dynamic"},
    "rows": {"activations": "float", "bits": 4},
    "groups": {"activations": "float", "bits": 4, "group": 16},
    "wide": {"bits": 3, "wide": ("up",)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_is_written(kind: str) -> None:
    made = quantized(encoder().net(), sentences(8, batches=2), **KINDS[kind])
    module, feeds = prepare(made), sentences(4, seed=3)[0]
    given = torch.from_numpy(feeds["ids"])
    assert sqnr(run(made.net, feeds)["made"], module(given).detach().numpy()) > 90
    before = {name: weight.codes.copy() for name, weight in {**made.weights, **made.tables}.items()}
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(given).square().sum().backward()
        optimizer.step()
    written = convert(module, made)
    with torch.no_grad():
        assert sqnr(run(written.net, feeds)["made"], module(given).numpy()) > 90
    after = {name: weight.codes for name, weight in {**written.weights, **written.tables}.items()}
    assert set(after) == set(before) >= {"up", "down", "pooler", "take_words"}
    assert all((after[name] != before[name]).any() for name in before)


def test_a_range_found_at_run_time_is_that_of_the_standard() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)).requires_grad_()
    made = fake_quantize_at_run_time(x)
    values = x.detach().numpy()
    low, high = min(values.min(), 0), max(values.max(), 0)
    step = np.float32((high - low) / np.float32(255))
    zero = np.rint(-low / step)
    wanted = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    np.testing.assert_array_equal(made.detach().numpy(), wanted)
    made.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), np.ones((5, 7)))
    for odd in (torch.zeros(3), torch.zeros(0, 4)):
        assert fake_quantize_at_run_time(odd) is odd


@pytest.mark.parametrize("axis", [0, 1])
def test_each_block_learns_its_step(axis: int) -> None:
    shape = (3, 32) if axis == 0 else (32, 3)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    base = torch.full((3, 2) if axis == 0 else (2, 3), 0.2)
    shift = torch.zeros_like(base).requires_grad_()
    fake_quantize_weight(x, base, shift, (0, -8, 7), axis, 16).square().sum().backward()  # type: ignore[no-untyped-call]
    assert shift.grad is not None
    parts = x.reshape(3, 2, 16) if axis == 0 else x.reshape(2, 16, 3).transpose(1, 2)
    for place in np.ndindex(*base.shape):
        lone = torch.zeros(()).requires_grad_()
        fake_quantize_weight(parts[place], torch.tensor(0.2), lone, (0, -8, 7), None).square().sum().backward()  # type: ignore[no-untyped-call]
        assert lone.grad is not None
        np.testing.assert_allclose(shift.grad[place].item(), lone.grad.item(), rtol=1e-5)
