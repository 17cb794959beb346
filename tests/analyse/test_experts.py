"""Sensitivities of stacked experts: gradients weighted by the router, against finite differences and divergences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tests.pipeline.planning.conftest import build, make, plain_tokenizer

from tersor.analyse.projections import _gradients, project
from tersor.analyse.side_by_side import SideBySide
from tersor.decoder import Block, Decoder
from tersor.models import Model
from tersor.models.model import ModelTensor

__all__ = ["build", "make", "plain_tokenizer"]

EXPERTS, USED = 4, 2
STACKED = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
STEP = 1e-3


@pytest.fixture
def model(make: Callable[..., Model]) -> Model:
    return make("MixtralConfig", num_local_experts=EXPERTS, num_experts_per_tok=USED)


@pytest.mark.parametrize("stem", [*STACKED, "attn_output", "attn_q"])
def test_gradients_of_experts_are_what_finite_differences_say(model: Model, stem: str) -> None:
    """Those of attention reach the output by the router's weights too, as long as no token is sent elsewhere."""
    decoder = Decoder(model)
    name, tried = f"blk.0.{stem}.weight", 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn((1, 5, decoder.hidden), generator=generator)
        gradient = torch.randn(hidden.shape, generator=generator)
        block = decoder.block(0)
        _, (found,) = _gradients(block, [name], hidden.clone(), gradient)
        direction = torch.randn(found.shape, generator=generator)
        sides = [_forward(block, name, block.weights[name] + step * direction, hidden) for step in (STEP, -STEP)]
        here = _forward(block, name, block.weights[name], hidden)[1]
        if any(torch.equal(side[1], here) is False for side in sides):
            continue
        high, low = (float((made.double() * gradient).sum()) for made, _ in sides)
        slope = float((found * direction).sum(dtype=torch.float64))
        assert slope == pytest.approx((high - low) / (2 * STEP), rel=0.02, abs=0.05)
        if stem in STACKED:  # an expert that no token is sent to has no part in it, all others have
            assert torch.equal(found.flatten(1).any(dim=1), here > 0)
        tried += 1
    assert tried >= 5


def _forward(block: Block, name: str, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The block's output with another weight, and how many tokens each expert saw."""
    twin, tokens = block.twin(), torch.zeros(EXPERTS, dtype=torch.int64)
    twin.weights[name] = weight

    def observe(names: Sequence[str], values: Tensor, expert: int | None) -> None:
        if "ffn_gate_exps" in names[0] and expert is not None:
            tokens[expert] = len(values)

    return twin.forward(hidden.clone(), observe), tokens


@dataclass
class OneExpert:
    """A small change of one expert of a stack, the others as they are."""

    sources: dict[str, ModelTensor]
    layers: int
    chosen: tuple[str, ...]
    expert: int

    def names(self, layer: int) -> Sequence[str]:
        return [name for name in self.chosen if self.sources[name].layer == (None if layer == self.layers else layer)]

    def count(self, name: str) -> int:
        del name
        return 1

    def read(self, name: str, start: int, stop: int) -> Tensor:
        source = self.sources[name]
        each = source.rows // EXPERTS
        change = torch.zeros((source.rows, source.columns))
        here = slice(self.expert * each, (self.expert + 1) * each)
        change[here] = 2e-3 * torch.randn((each, source.columns), generator=torch.Generator().manual_seed(len(name)))
        return change[None, start:stop]


def test_the_estimate_of_one_expert_is_the_divergence_that_it_makes(model: Model) -> None:
    decoder = Decoder(model)
    sources = {tensor.name: tensor for tensor in model.tensors}
    # of the last block: before it, a token that is sent elsewhere changes more than any gradient knows of
    chosen = tuple(f"blk.{decoder.layers - 1}.{stem}.weight" for stem in STACKED)
    ids = np.random.default_rng(3).integers(0, decoder.vocabulary, (160, 16))
    changes = OneExpert(sources, decoder.layers, chosen, expert=1)
    found = project(decoder, ids, changes, seed=1)
    for name in chosen:
        sides = SideBySide(decoder, ids)
        table = torch.from_numpy(sources["token_embd.weight"].read(0, decoder.vocabulary))
        matrix = sources[decoder.matrix]

        def head(start: int, stop: int, matrix: ModelTensor = matrix) -> Tensor:
            return torch.from_numpy(matrix.read(start, stop))

        def embed(rows: Tensor, table: Tensor = table) -> Tensor:
            return table[rows]

        with torch.no_grad():
            sides.begin({"changed": embed})
            for layer in range(decoder.layers):
                block = decoder.block(layer)
                change = changes.read(name, 0, sources[name].rows)[0]
                here = name in block.weights
                weights = {name: block.weights[name] + change.reshape(block.weights[name].shape)} if here else {}
                sides.through(block, {"changed": weights})
            made = sides.divergences({"changed": head})
        measured = float(made["changed"].kl.mean())
        estimate = float(np.square(found[name][:, 0], dtype=np.float64).mean())
        # 160 draws: good to √(2/160), 11 %
        assert estimate == pytest.approx(measured, rel=0.35), name
