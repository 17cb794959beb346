"""The decoder against transformers, from checkpoints and from GGUF files alike."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tersor.core.errors import ShapeError
from tersor.decoder import Decoder
from tersor.models import load
from tersor.pipeline.quantize import quantize

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch")

LLAMA = "llama: grouped heads of a free size, all biases, llama3 rope"


def test_logits_equal_those_of_transformers(case: str, tiny: Any, ids: Tensor, run: Any, apart: Any) -> None:
    made = tiny(case)
    model = load(made.folder)
    ours = run(Decoder(model), ids)
    # Both sum in float32, in other orders: measured 3e-6 to 9e-6 of the root mean square over these rows.
    assert apart(ours, run.theirs(made.source, ids)) <= 5e-5
    path = tiny.write(model, made.folder / "model.gguf")
    assert apart(run(Decoder(load(path)), ids), ours) <= 1e-5


def test_a_text_does_not_change_those_beside_it(tiny: Any, ids: Tensor, run: Any, apart: Any) -> None:
    decoder = Decoder(load(tiny("mixtral").folder))
    assert apart(run(decoder, ids)[1:], run(decoder, ids[1:])) <= 1e-5


def test_later_tokens_do_not_change_earlier_ones(case: str, tiny: Any, ids: Tensor, run: Any, apart: Any) -> None:
    decoder = Decoder(load(tiny(case).folder))
    short = 70 if "long texts" in case else 40  # on one side of the original context
    assert apart(run(decoder, ids)[:, :short], run(decoder, ids[:, :short])) <= 1e-5


def test_one_block_at_a_time_is_in_memory(tiny: Any, ids: Tensor) -> None:
    decoder = Decoder(load(tiny(LLAMA).folder))
    hidden, references = decoder.embed(ids), []
    for layer in range(decoder.layers):
        block = decoder.block(layer)
        assert block.nbytes == decoder.block_nbytes(layer)
        references += [weakref.ref(weight) for weight in block.weights.values()]
        gc.collect()
        alive = [reference() for reference in references]
        assert sum(weight.nbytes for weight in alive if weight is not None) == block.nbytes
        hidden = block.forward(hidden)
        del alive, block
    gc.collect()
    assert all(reference() is None for reference in references)


def test_making_a_decoder_reads_no_weights_and_a_block_only_its_own(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny(LLAMA).folder)
    names: list[str] = []
    original = type(model.tensors[0]).read

    def remember(self: Any, start: int, stop: int) -> Any:
        names.append(self.name)
        return original(self, start, stop)

    monkeypatch.setattr(type(model.tensors[0]), "read", remember)
    decoder = Decoder(model)
    assert names == ["rope_freqs.weight"]
    names.clear()
    decoder.block(1)
    assert len(names) == 2 + 2 * 7  # norms, matrices and their biases
    assert all(name.startswith("blk.1.") for name in names)


def test_logits_by_slices_equal_those_at_once(tiny: Any, ids: Tensor, apart: Any) -> None:
    decoder = Decoder(load(tiny("gemma2: window of 9, own attention scale").folder))
    hidden, seen = decoder.embed(ids), []
    sliced = decoder.logits(hidden, lambda names, inputs, _: seen.append((names, inputs.shape)), slice_rows=50)
    assert apart(sliced, decoder.logits(hidden)) <= 1e-6
    assert seen == [(("token_embd.weight",), (160, 96))]


def test_embeddings_are_the_rows_of_the_table(tiny: Any, ids: Tensor) -> None:
    model = load(tiny(LLAMA).folder)
    table = model.tensors[0].read(0, model.tensors[0].rows)
    assert torch.equal(Decoder(model).embed(ids), torch.from_numpy(table)[ids])


@pytest.mark.parametrize("wrong", [[[0, 288]], [[-1, 3]]])
def test_an_id_without_an_embedding_is_refused(tiny: Any, wrong: list[list[int]]) -> None:
    with pytest.raises(ShapeError, match="of 0 to 287"):
        Decoder(load(tiny(LLAMA).folder)).embed(torch.tensor(wrong))


def test_a_block_that_is_not_there_is_refused(tiny: Any) -> None:
    with pytest.raises(ShapeError, match="block 3 asked for; the model has 3"):
        Decoder(load(tiny(LLAMA).folder)).block(3)


def test_a_quantized_gguf_runs_through_its_decoded_weights(tiny: Any, ids: Tensor, tmp_path: Path) -> None:
    model = load(tiny("llama: one head a group").folder)
    quantize(model, "q4_0", tmp_path / "q.gguf", measure=False)
    plain, packed = Decoder(model), Decoder(load(tmp_path / "q.gguf"))
    hidden = plain.embed(ids)
    block, other = plain.block(0), packed.block(0)
    before, wanted = block.forward(hidden), other.forward(hidden)
    assert not torch.allclose(before, wanted, atol=1e-3)
    block.weights.update(other.weights)
    assert torch.equal(block.forward(hidden), wanted)
