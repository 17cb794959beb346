"""What observers see: the inputs of weight matrices, each once, and for experts their own tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tersor.decoder import Block, Decoder
from tersor.decoder.block import activate
from tersor.models import load
from tersor.models.model import kind_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch")

LLAMA = "llama: grouped heads of a free size, all biases, llama3 rope"
LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Seen:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, int | None], Tensor] = {}
        self.groups: list[tuple[tuple[str, ...], int | None]] = []

    def __call__(self, names: tuple[str, ...], inputs: Tensor, expert: int | None) -> None:
        self.groups.append((names, expert))
        for name in names:
            assert (name, expert) not in self.inputs
            self.inputs[name, expert] = inputs.clone()


def observed(block: Block, hidden: Tensor) -> tuple[Seen, Tensor]:
    """Return what was seen, and the output; watching changes nothing."""
    seen = Seen()
    before = hidden.clone()
    made = block.forward(hidden, seen)
    assert torch.equal(hidden, before)
    assert torch.equal(made, block.forward(hidden))
    return seen, made


def test_every_matrix_but_the_router_is_observed_once_with_rows_as_long_as_its_own(
    case: str, tiny: Any, ids: Tensor
) -> None:
    decoder = Decoder(load(tiny(case).folder))
    block = decoder.block(1)
    seen, _ = observed(block, decoder.embed(ids))
    expected: set[tuple[str, int | None]] = set()
    for name, weight in block.weights.items():
        if weight.ndim == 2 and kind_of(name) != "ffn_gate_inp":
            expected.add((name, None))
        elif weight.ndim == 3:
            expected.update((name, expert) for expert in range(weight.shape[0]))
    assert set(seen.inputs) == expected
    for (name, expert), inputs in seen.inputs.items():
        assert inputs.shape[1:] == block.weights[name].shape[-1:]
        if expert is None:
            assert len(inputs) == ids.numel()


def test_matrices_that_share_an_input_are_observed_together(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny(LLAMA).folder))
    seen, _ = observed(decoder.block(2), decoder.embed(ids))
    stems = [tuple(kind_of(name) for name in names) for names, _ in seen.groups]
    assert stems == [("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",)]


def test_fused_matrices_are_observed_under_their_names(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny("phi3").folder))
    seen, _ = observed(decoder.block(0), decoder.embed(ids))
    stems = [tuple(kind_of(name) for name in names) for names, _ in seen.groups]
    assert stems == [("attn_qkv",), ("attn_output",), ("ffn_up",), ("ffn_down",)]


def test_inputs_equal_those_of_the_linears_of_transformers(tiny: Any, ids: Tensor, run: Any, apart: Any) -> None:
    made, seen, theirs = tiny(LLAMA), Seen(), {}
    for layer, module in enumerate(made.source.model.layers):
        for stem, path in LINEARS.items():

            def keep(_: Any, inputs: tuple[Tensor], name: str = f"blk.{layer}.{stem}.weight") -> None:
                theirs[name, None] = inputs[0].flatten(0, 1)

            module.get_submodule(path).register_forward_pre_hook(keep)
    made.source.lm_head.register_forward_pre_hook(
        lambda _, inputs: theirs.__setitem__(("output.weight", None), inputs[0].flatten(0, 1))
    )
    run.theirs(made.source, ids)
    run(Decoder(load(made.folder)), ids, seen)
    assert seen.inputs.keys() == theirs.keys()
    assert max(apart(seen.inputs[key], theirs[key]) for key in theirs) <= 5e-5


def test_the_inputs_times_the_weights_are_what_the_block_adds(case: str, tiny: Any, ids: Tensor, apart: Any) -> None:
    if "moe" in case or "mixtral" in case:
        case = "qwen3"  # the experts' own law is below
    decoder = Decoder(load(tiny(case).folder))
    hidden, block = decoder.embed(ids), decoder.block(0)
    seen, made = observed(block, hidden)
    total = hidden.flatten(0, 1)
    for stem, norm in (("attn_output", "post_attention_norm"), ("ffn_down", "post_ffw_norm")):
        name = f"blk.0.{stem}.weight"
        part = seen.inputs[name, None] @ block.weights[name].T + block.weights.get(f"blk.0.{stem}.bias", 0.0)
        weight = block.weights.get(f"blk.0.{norm}.weight")
        if weight is not None:
            part = weight * part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        total = total + part
    assert apart(made.flatten(0, 1), total) <= 1e-5


@pytest.mark.parametrize(("name", "used", "experts"), [("mixtral", 2, 5), ("qwen3moe", 3, 6)])
def test_experts_see_their_own_tokens_only(
    *, name: str, used: int, experts: int, tiny: Any, ids: Tensor, apart: Any
) -> None:
    decoder = Decoder(load(tiny(name).folder))
    block = decoder.block(0)
    seen, _ = observed(block, decoder.embed(ids))
    shares = [seen.inputs["blk.0.ffn_gate_exps.weight", expert] for expert in range(experts)]
    assert sum(map(len, shares)) == ids.numel() * used
    tokens, places = torch.unique(torch.cat(shares), dim=0, return_counts=True)
    assert len(tokens) <= ids.numel()
    assert int(places.sum()) == ids.numel() * used
    for expert, x in enumerate(shares):
        gate, up = (block.weights[f"blk.0.ffn_{stem}_exps.weight"][expert] for stem in ("gate", "up"))
        inner = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
        assert apart(seen.inputs["blk.0.ffn_down_exps.weight", expert], inner) <= 1e-5


def test_an_expert_without_tokens_is_reported(tiny: Any) -> None:
    decoder = Decoder(load(tiny("mixtral").folder))
    seen, _ = observed(decoder.block(0), decoder.embed(torch.tensor([[3]])))
    counts = [len(seen.inputs["blk.0.ffn_down_exps.weight", expert]) for expert in range(5)]
    assert sorted(counts) == [0, 0, 0, 1, 1]


def test_a_weight_put_in_another_place_is_used(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny("mixtral").folder))
    hidden, block = decoder.embed(ids), decoder.block(0)
    before = block.forward(hidden)
    name = "blk.0.ffn_down_exps.weight"
    kept = block.weights[name]
    seen, _ = observed(block, hidden)
    block.weights[name] = kept.clone()
    block.weights[name][3] = 0
    changed = (block.forward(hidden) != before).any(-1)
    assert int(changed.sum()) == len(seen.inputs[name, 3])
    assert 0 < int(changed.sum()) < changed.numel()
    block.weights[name] = kept
    assert torch.equal(block.forward(hidden), before)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_the_activation_is_of_the_gate(activation: str) -> None:
    gate, up = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = gate * torch.sigmoid(gate) if activation == "silu" else 0.0
    if activation == "gelu":
        expected = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(activate(gate.clone(), up, activation), expected * up)


def test_what_products_in_bfloat16_make_is_added_up_in_float32(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny(LLAMA).folder))
    block, hidden = decoder.block(0), decoder.embed(ids)
    wanted = block.forward(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        made = block.forward(hidden)
    assert made.dtype == torch.float32
    assert not torch.equal(made, wanted)
    torch.testing.assert_close(made, wanted, rtol=0, atol=float(0.02 * (wanted - hidden).abs().max()))
