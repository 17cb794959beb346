"""Scaling a block before rounding must not change what it computes, in any architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.stream import Input
from tersor.core.errors import SchemeError
from tersor.decoder import Decoder
from tersor.formats import get
from tersor.models import load
from tersor.pipeline.calibrated.rewrites import parse_method, producer_of, rescale

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch", reason="rewrites compute with torch: pip install 'tersor[torch]'")


def gathered(block: Any, hidden: Tensor) -> list[Input]:
    """What each input of a block adds up to."""
    found: list[Input] = []

    def observe(names: tuple[str, ...], values: Tensor, expert: int | None) -> None:
        sums = Sums.empty(values.shape[-1], hessian=True, cross=False)
        sums.add(values)
        found.append(Input(names, expert, sums))

    block.forward(hidden, observe)
    return found


def scales_for(columns: int) -> Tensor:
    """From a quarter to four, no power of two."""
    return 4.0 ** (2 * torch.rand(columns, generator=torch.Generator().manual_seed(columns)) - 1)


@pytest.mark.parametrize("norms", ["f32", "bf16"])
def test_a_rescaled_block_computes_the_same(case: str, norms: str, tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny(case).folder))
    hidden, block = decoder.embed(ids), decoder.block(1)
    before, inputs = block.forward(hidden), gathered(block, hidden)
    scaled = 0
    for one in inputs:
        if producer_of(one, block.weights) is not None:
            rescale(one, block.weights, scales_for(len(one.sums.squares)), get(norms))
            scaled += 1
    assert scaled >= 1, "a block in which nothing can be scaled shows nothing"
    difference = float((block.forward(hidden) - before).abs().max() / before.square().mean().sqrt())
    assert difference < 2e-5


def test_statistics_are_those_of_the_scaled_inputs(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny("llama: one head a group").folder))
    hidden, block = decoder.embed(ids), decoder.block(1)
    inputs = gathered(block, hidden)
    for one in inputs:
        if producer_of(one, block.weights) is not None:
            rescale(one, block.weights, scales_for(len(one.sums.squares)), get("f32"))
    for one, again in zip(inputs, gathered(block, hidden), strict=True):
        for mine, theirs in ((one.sums.hessian(), again.sums.hessian()), (one.sums.squares, again.sums.squares)):
            assert mine is not None
            assert theirs is not None
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_every_input_of_a_dense_llama_without_grouped_attention_can_be_scaled(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny("llama: one head a group").folder))
    block = decoder.block(0)
    kinds = {one.names[0].split(".")[2]: producer_of(one, block.weights) for one in gathered(block, decoder.embed(ids))}
    grouped = len(block.weights["blk.0.attn_v.weight"]) < block.weights["blk.0.attn_output.weight"].shape[1]
    assert {kind for kind, producer in kinds.items() if producer is None} == ({"attn_output"} if grouped else set())


@pytest.mark.parametrize("text", ["gptqq", "awq+nothing", "gptq+awq", "gptq+best", ""])
def test_methods_that_do_not_exist_or_combine_are_refused(text: str) -> None:
    with pytest.raises(SchemeError, match="unknown method"):
        parse_method(text)
