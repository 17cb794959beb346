"""What blocks are shown is what transformers, run as a whole with the same weights, puts into its matrices."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.sequences import Sequences
from tersor.calibrate.stream import Needs
from tersor.decoder import Decoder

from .conftest import Gather, Notebook, Small, shrunk

torch = pytest.importorskip("torch", reason="blocks run in torch: pip install 'tersor[torch]'")

PARTS = {
    "self_attn.q_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}
"""The matrices that become something else in one step."""
Seen = dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]
SITES = {
    "self_attn.q_proj": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}


def spied(small: Small, sequences: Sequences, layer: int) -> Seen:
    """The inputs of one block's modules in transformers, float64 [tokens, columns], and its residual stream."""
    block = small.source.model.layers[layer]
    found: Seen = {}

    def keeper(name: str) -> Any:
        def keep(_module: Any, inputs: tuple[Any, ...]) -> None:
            found[name] = inputs[0].detach().double().flatten(0, -2).numpy()

        return keep

    sites = {name: block.get_submodule(name) for name in SITES}
    sites |= {"stream before attn_output": block, "stream before ffn_down": block.post_attention_layernorm}
    hooks = [module.register_forward_pre_hook(keeper(name)) for name, module in sites.items()]
    with torch.no_grad():
        small.source(torch.from_numpy(sequences.ids))
    for hook in hooks:
        hook.remove()
    return found


def shrink(small: Small, layer: int, factor: float, stems: tuple[str, ...] = ("",)) -> None:
    """Multiply all matrices of a block of the source, or those that are named."""
    with torch.no_grad():
        for name, value in small.source.model.layers[layer].named_parameters():
            if "norm" not in name and any(stem in name for stem in stems):
                value.mul_(factor)


def close(ours: Any, wanted: Any) -> None:
    scale = np.sqrt(np.mean(np.square(wanted)))
    np.testing.assert_allclose(ours.numpy(), wanted, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("stepwise", [True, False])
@pytest.mark.parametrize("paired", [1.0, 0.5])
def test_sums_are_those_of_a_whole_forward_pass_behind_what_earlier_matrices_became(
    paired: float, stepwise: bool, dense: Small, sequences: Sequences, gather: Gather
) -> None:
    notebook = gather(dense.model, sequences, stepwise=stepwise, paired=paired, chunk=2)
    # of five sequences in chunks of two: the first of each
    twins = np.repeat([True, paired == 1, True, paired == 1, True], 12)
    full = [spied(dense, sequences, layer) for layer in range(3)]
    for layer in range(3):
        behind = spied(dense, sequences, layer)
        for site, stems in SITES.items():
            if stepwise:
                behind = spied(dense, sequences, layer)
            names = tuple(f"blk.{layer}.{stem}.weight" for stem in stems)
            sums = notebook.seen[layer][names, None].sums
            x, y = behind[site], full[layer][site]
            assert sums.tokens == len(x) == 60
            close(sums.hessian(), x.T @ x / 60)
            assert sums.paired in (twins.sum(), 0)
            close(sums.mean_cross(), x.T @ x / 60 + (y - x)[twins].T @ x[twins] / twins.sum())
            close(sums.importance(), (x**2).mean(axis=0))
            stream = f"stream before {stems[0]}"
            if stream in behind:
                wanted = (full[layer][stream] - behind[stream])[twins].T @ x[twins] / twins.sum()
                found = sums.mean_residual()
                assert found is not None
                atol = 2e-5 * max(np.sqrt(np.mean(np.square(wanted))), 1e-3)
                np.testing.assert_allclose(found.numpy(), wanted, atol=atol, rtol=1e-4)
            else:
                assert sums.mean_residual() is None
            if stepwise:
                shrink(dense, layer, 0.75, PARTS[site])
        if not stepwise:
            shrink(dense, layer, 0.75)


def test_the_output_matrix_sees_what_all_blocks_became(dense: Small, sequences: Sequences, gather: Gather) -> None:
    sums = gather(dense.model, sequences, paired=1.0).seen[3][("output.weight",), None].sums
    rows = []
    for _ in range(2):
        with torch.no_grad():
            states = dense.source.model(torch.from_numpy(sequences.ids)).last_hidden_state
        rows.append(states.double().flatten(0, -2).numpy())
        for layer in range(3):
            shrink(dense, layer, 0.75)
    full, behind = rows
    close(sums.hessian(), behind.T @ behind / 60)
    close(sums.mean_cross(), full.T @ behind / 60)


def test_what_an_output_matrix_sees_is_not_worked_out_where_nobody_asks(
    dense: Small, sequences: Sequences, gather: Gather
) -> None:
    class Indifferent(Notebook):
        def needs(self, name: str) -> Needs:
            return Needs(hessian=True, cross=True, squares=name != "output.weight")

    stages: list[str] = []

    def stage(name: str) -> Any:
        stages.append(name)
        return nullcontext()

    whole = gather(dense.model, sequences, stage=stage)
    count = stages.count("forward")
    stages.clear()
    spared = gather(dense.model, sequences, notebook=Indifferent(), stage=stage)
    assert stages.count("forward") < count
    assert spared.seen[3][("output.weight",), None].sums.tokens == 0
    for layer in range(3):
        for key, one in whole.seen[layer].items():
            for mine, theirs in zip(one.sums.parts(), spared.seen[layer][key].sums.parts(), strict=True):
                np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=str(key))


def naive(model: Any, sequences: Sequences, became: dict[int, dict[str, Any]]) -> dict[Any, Sums]:
    """Sums of whole passes over all sequences at once, every matrix replaced as soon as its input was seen."""
    decoder, found = Decoder(model), {}
    hidden = decoder.embed(torch.from_numpy(sequences.ids))
    for layer in range(decoder.layers):
        block = decoder.block(layer)
        for stem in ("attn_q", "attn_output", "ffn_gate", "ffn_down"):

            def observe(names: tuple[str, ...], values: Any, expert: int | None, stem: str = stem) -> None:
                if stem not in names[0]:
                    return
                found[names, expert] = sums = Sums.empty(values.shape[-1], hessian=True, cross=False)
                sums.add(values)

            block.forward(hidden, observe)
            step = {name for names, _ in found for name in names if name in became[layer]}
            block.weights.update({name: became[layer][name] for name in step})
        hidden = block.forward(hidden)
    return found


def test_every_input_is_summed_up_that_of_each_expert_by_itself(
    small: Small, sequences: Sequences, gather: Gather
) -> None:
    notebook = gather(small.model, sequences, cross=False, notebook=Notebook(wants=Needs(hessian=True)))
    wanted = naive(small.model, sequences, notebook.became)
    seen = {key: one.sums for layer in range(3) for key, one in notebook.seen[layer].items()}
    assert seen.keys() == wanted.keys()
    for key, sums in seen.items():
        assert sums.tokens == wanted[key].tokens, key
        assert sums.lag is None
        if sums.tokens:
            hessian, expected = sums.hessian(), wanted[key].hessian()
            assert hessian is not None
            assert expected is not None
            close(hessian, expected.numpy())


def test_each_expert_counts_its_own_tokens(experts: Small, sequences: Sequences, gather: Gather) -> None:
    seen = gather(experts.model, sequences).seen[1]
    counts = [one.sums.tokens for (names, expert), one in seen.items() if expert is not None and len(names) == 2]
    assert len(counts) == 4
    assert sum(counts) == 2 * 60
    assert len(set(counts)) > 1


def test_experts_are_not_paired_with_other_tokens(experts: Small, sequences: Sequences, gather: Gather) -> None:
    for (names, expert), one in gather(experts.model, sequences).seen[2].items():
        assert (one.sums.lag is None) == (expert is not None), names


def test_what_a_matrix_does_not_need_is_not_summed(dense: Small, sequences: Sequences, gather: Gather) -> None:
    class Choosy(Notebook):
        def needs(self, name: str) -> Needs:
            return Needs(hessian="ffn" in name)

    for (names, _), one in gather(dense.model, sequences, notebook=Choosy()).seen[0].items():
        assert (one.sums.product is None) == ("ffn" not in names[0])
        assert one.sums.lag is None
        assert one.sums.importance().any()


@pytest.mark.parametrize("cross", [False, True])
def test_finished_blocks_are_skipped_and_leave_the_same_states(
    cross: bool, small: Small, sequences: Sequences, gather: Gather
) -> None:
    whole = gather(small.model, sequences, cross=cross, notebook=Notebook(wants=Needs(hessian=True, cross=cross)))
    notebook = Notebook(wants=Needs(hessian=True, cross=cross), already={i: whole.became[i] for i in range(2)})
    resumed = gather(small.model, sequences, cross=cross, notebook=notebook)
    assert resumed.calls == [
        *(("passed", 0), ("passed", 1)),
        *[("visit", 2)] * 4,
        *(("finish", 2), ("passed", 2), ("visit", 3), ("finish", 3)),
    ]
    for layer in (2, 3):
        assert resumed.seen[layer].keys() == whole.seen[layer].keys()
        for key, one in resumed.seen[layer].items():
            for mine, theirs in zip(one.sums.parts(), whole.seen[layer][key].sums.parts(), strict=True):
                np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=str(key))


def test_a_file_of_states_changes_no_bit(small: Small, sequences: Sequences, gather: Gather, tmp_path: Path) -> None:
    inside, spilled = (gather(small.model, sequences, spill=where) for where in (None, tmp_path))
    for layer, inputs in inside.seen.items():
        for key, one in inputs.items():
            for mine, theirs in zip(one.sums.parts(), spilled.seen[layer][key].sums.parts(), strict=True):
                np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=str(key))
    assert list(tmp_path.glob("tmp*")) == []


def test_an_embedding_that_was_rounded_splits_the_two_models(
    dense: Small, sequences: Sequences, gather: Gather
) -> None:
    def untouched(name: str, weight: Any) -> Any:
        return shrunk(name, weight) / 0.75

    first = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"), None
    same = gather(dense.model, sequences, notebook=Notebook(change=untouched)).seen[0][first].sums
    moved = (
        gather(dense.model, sequences, notebook=Notebook(change=untouched), embed=lambda x: x + 0.01 * x.abs().amax())
        .seen[0][first]
        .sums
    )
    cross, own, other, far = same.mean_cross(), same.hessian(), moved.mean_cross(), moved.hessian()
    assert cross is not None
    assert own is not None
    assert other is not None
    assert far is not None
    np.testing.assert_allclose(cross.numpy(), own.numpy(), rtol=1e-5, atol=1e-7)
    assert not np.allclose(other.numpy(), far.numpy(), rtol=1e-3)
    assert not np.allclose(far.numpy(), own.numpy(), rtol=1e-3)


def test_progress_and_clocks_are_told(dense: Small, sequences: Sequences, gather: Gather) -> None:
    told: list[tuple[int, float]] = []
    gather(dense.model, sequences, progress=lambda layer, share: told.append((layer, share)))
    assert told == sorted(told)
    assert [layer for layer, share in told if share == 1.0] == [0, 1, 2, 3]
