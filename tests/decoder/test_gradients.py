"""Gradients through blocks and the end of the decoder: those of every architecture's forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tersor.decoder import Decoder
from tersor.models import load

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch")


def test_a_traced_block_computes_the_same_and_its_gradient_is_the_slope(case: str, tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny(case).folder))
    hidden = decoder.embed(ids[:, :40])
    block = decoder.block(0)
    generator = torch.Generator().manual_seed(1)
    towards = torch.randn(hidden.shape, generator=generator)
    towards[:, 1:] = 0
    output = torch.randn(hidden.shape, generator=generator)
    leaf = hidden.clone().requires_grad_()
    names = [name for name, weight in block.weights.items() if weight.ndim > 1 and "gate_inp" not in name]
    twin = block.twin()
    leaves = [block.weights[name].clone().requires_grad_() for name in names]
    twin.weights.update(zip(names, leaves, strict=True))
    made = twin.traced(leaf)
    torch.testing.assert_close(made, block.forward(hidden), rtol=1e-4, atol=1e-5)
    slopes = torch.autograd.grad(made, [leaf, *leaves], output, materialize_grads=True)
    if all("gate_inp" not in name for name in block.weights):  # a router may send a token elsewhere within a step
        ahead, behind = (block.forward(hidden + step * towards) for step in (1e-3, -1e-3))
        found = float(((ahead - behind).double() * output).sum()) / 2e-3
        wanted = float((slopes[0] * towards).sum())
        assert found == pytest.approx(wanted, rel=0.02, abs=0.02 * float(slopes[0].norm()))
    name, slope = names[-1], slopes[-1]
    change = torch.randn(slope.shape, generator=generator) * block.weights[name].std()
    ends = []
    for sign in (1, -1):
        twin.weights.update({**block.weights, name: block.weights[name] + sign * 1e-2 * change})
        ends.append(twin.forward(hidden))
    found_weight = float(((ends[0] - ends[1]).double() * output).sum()) / 2e-2
    assert found_weight == pytest.approx(float((slope * change).sum()), rel=0.02, abs=0.02 * float(slope.norm()))


def test_the_end_traced_computes_the_same(case: str, tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny(case).folder))
    head, hidden = decoder.head(), decoder.embed(ids[:, :9])
    leaf = hidden.clone().requires_grad_()
    made = head.traced(leaf)
    torch.testing.assert_close(made, head.forward(hidden))
    (slope,) = torch.autograd.grad(made.sum(), leaf)
    assert bool(slope.any())
