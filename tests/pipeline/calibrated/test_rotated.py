"""A turned model computes what the model computes, or is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.neighbours import neighbour

from tersor.core.errors import SchemeError
from tersor.decoder import Decoder
from tersor.methods.rewrites.rotation import random_signs, rotation
from tersor.models import Model, load
from tersor.models.transforms import Constant
from tersor.pipeline.calibrated.rotated import rotated

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch", reason="rotations are computed with torch: pip install 'tersor[torch]'")


_decoder = neighbour("decoder/conftest", "rotated")
tiny, ids, run, apart = _decoder.tiny, _decoder.ids, _decoder.run, _decoder.apart

FOLDED = [
    "llama: grouped heads of a free size, all biases, llama3 rope",
    "llama: yarn",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "phi3",
]
TIED = ["llama: tied, linear rope", "qwen2: tied, yarn", "qwen3: tied", "phi3: longrope, long texts"]
NORMED = ["gemma2: window of 9, own attention scale", "gemma3: layers in another pattern, soft cap"]


def values(model: Model, name: str) -> Tensor:
    tensor = next(tensor for tensor in model.tensors if tensor.name == name)
    return torch.from_numpy(tensor.read(0, tensor.rows)).reshape(tensor.shape)


@pytest.mark.parametrize("name", FOLDED)
def test_logits_are_those_of_the_model(name: str, tiny: Any, ids: Tensor, run: Any, apart: Any) -> None:
    model = load(tiny(name).folder)
    turned = rotated(model)
    assert apart(run(Decoder(turned), ids), run(Decoder(model), ids)) <= 2e-5
    assert any("Hadamard rotation" in note for note in turned.notes)
    width = model.tensors[0].columns
    turn = rotation(random_signs(width)).float()
    assert torch.allclose(values(turned, "token_embd.weight"), values(model, "token_embd.weight") @ turn.T, atol=1e-5)
    assert (values(turned, "blk.1.ffn_norm.weight") == 1).all()


@pytest.mark.parametrize("name", TIED)
def test_a_table_that_is_the_output_matrix_too_is_refused(name: str, tiny: Any) -> None:
    with pytest.raises(SchemeError, match="its embedding table is its output matrix too"):
        rotated(load(tiny(name).folder))


@pytest.mark.parametrize("name", NORMED)
def test_norms_behind_matrices_are_refused_by_name(name: str, tiny: Any) -> None:
    with pytest.raises(SchemeError, match=r"blk\.0\.post_attention_norm\.weight norms what is added"):
        rotated(load(tiny(name).folder))


def test_a_tied_table_is_turned_where_the_last_norm_is_even(make: Any, ids: Tensor, run: Any, apart: Any) -> None:
    model = make(tie_word_embeddings=True)
    even = _with(model, "output_norm.weight", np.full(64, 1.5, np.float32))
    ids = ids[:, :60]
    assert apart(run(Decoder(rotated(even)), ids), run(Decoder(even), ids)) <= 2e-5


def test_a_width_without_a_hadamard_matrix_is_refused(make: Any) -> None:
    with pytest.raises(SchemeError, match="no Hadamard matrix of 16 columns or more divides a stream of 72"):
        rotated(make(hidden_size=72))


@pytest.mark.parametrize("stem", ["attn_output", "ffn_down", "attn_q", "output"])
def test_rows_are_the_same_whether_read_alone_or_together(stem: str, tiny: Any) -> None:
    turned = rotated(load(tiny(FOLDED[0]).folder))
    name = "output.weight" if stem == "output" else f"blk.1.{stem}.weight"
    tensor = next(tensor for tensor in turned.tensors if tensor.name == name)
    whole = tensor.read(0, tensor.rows)
    for start, stop in ((0, 1), (31, 33), (tensor.rows - 5, tensor.rows), (7, 7)):
        assert np.array_equal(tensor.read(start, stop), whole[start:stop])


def test_another_seed_is_another_rotation(tiny: Any) -> None:
    model = load(tiny(FOLDED[0]).folder)
    first, second = (values(rotated(model, seed=seed), "token_embd.weight") for seed in (0, 1))
    assert not torch.allclose(first, second)


def _with(model: Model, name: str, array: np.ndarray[Any, np.dtype[np.float32]]) -> Model:
    """The model with one tensor replaced."""
    tensors = tuple(replace(t, values=Constant(array)) if t.name == name else t for t in model.tensors)
    return replace(model, tensors=tensors)
