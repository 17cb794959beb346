"""Turning by position: the definition, the two layouts, tables that grow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import pytest

from tersor.decoder.rope import Rope
from tersor.decoder.settings import RopeSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch")


def rope(
    pairs: Literal["neighbours", "halves"] = "neighbours",
    *,
    factors: dict[str, Tensor] | None = None,
    dimensions: int = 8,
    local_base: float | None = None,
    stretch: float = 1.0,
    attention_factor: float = 1.0,
) -> Rope:
    settings = RopeSettings(
        dimensions,
        10_000.0,
        local_base,
        stretch,
        False,
        original=6,
        attention_factor=attention_factor,
        betas=(32.0, 1.0),
    )
    return Rope(settings, factors or {}, pairs, "cpu")


def heads(size: int = 8, tokens: int = 12) -> Tensor:
    return torch.randn(2, tokens, 3, size, generator=torch.Generator().manual_seed(0))


def test_each_pair_turns_by_its_frequency_times_the_position() -> None:
    x = heads()
    made = rope(stretch=2.0, attention_factor=1.5).turn(x, is_local=False)
    angle = 7 / 2 * 10_000 ** (-2 * 3 / 8)
    a, b = x[1, 7, 2, 6:8].tolist()
    expected = [1.5 * (a * math.cos(angle) - b * math.sin(angle)), 1.5 * (a * math.sin(angle) + b * math.cos(angle))]
    torch.testing.assert_close(made[1, 7, 2, 6:8], torch.tensor(expected))


@pytest.mark.parametrize("dimensions", [4, 8])
def test_halves_are_neighbours_in_another_order(dimensions: int) -> None:
    x = heads()
    order = [*torch.arange(dimensions).view(2, -1).T.flatten().tolist(), *range(dimensions, 8)]
    by_halves = rope("halves", dimensions=dimensions).turn(x, is_local=False)
    by_neighbours = rope("neighbours", dimensions=dimensions).turn(x[..., order], is_local=False)
    torch.testing.assert_close(by_halves[..., order], by_neighbours)
    assert torch.equal(by_halves[..., dimensions:], x[..., dimensions:])


def test_longer_texts_do_not_change_how_shorter_ones_turn() -> None:
    x, made = heads(), rope()
    first = made.turn(x[:, :3], is_local=False)
    assert torch.equal(made.turn(x, is_local=False)[:, :3], first)
    assert torch.equal(made.turn(x[:, :3], is_local=False), first)


def test_texts_beyond_the_original_context_take_the_long_factors() -> None:
    factors = {"rope_factors_short": torch.ones(4), "rope_factors_long": torch.full((4,), 3.0)}
    x = heads()
    made, plain, slow = rope(factors=factors), rope(), rope(stretch=3.0)
    assert torch.equal(made.turn(x[:, :6], is_local=False), plain.turn(x[:, :6], is_local=False))
    torch.testing.assert_close(made.turn(x[:, :7], is_local=False), slow.turn(x[:, :7], is_local=False))


def test_sliding_blocks_with_a_base_of_their_own_are_not_stretched() -> None:
    x = heads()
    made = rope(local_base=10_000.0, stretch=4.0)
    assert torch.equal(made.turn(x, is_local=True), rope().turn(x, is_local=False))
    assert not torch.equal(made.turn(x, is_local=False), made.turn(x, is_local=True))
