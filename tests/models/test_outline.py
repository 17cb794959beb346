from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tersor import reference_model
from tersor.core.errors import FormatError, MissingError
from tersor.models.load import load
from tersor.models.outline import outline

MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100,
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


def test_a_config_alone_gives_the_tensors_that_the_weights_have(tmp_path: Path) -> None:
    shutil.copy(reference_model.PATH / "config.json", tmp_path / "config.json")
    found, whole = outline(tmp_path), load(reference_model.PATH)
    assert [(t.name, t.shape, t.must_be_f32) for t in found.tensors] == [
        (t.name, t.shape, t.must_be_f32) for t in whole.tensors
    ]
    assert (found.architecture, found.metadata) == (whole.architecture, whole.metadata)


def test_experts_are_stacked_once_whichever_way_they_are_stored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTURE))
    found = {tensor.name: tensor for tensor in outline(tmp_path).tensors}
    assert len(found) == 3 + 3 * (2 + 4 + 2 + 4)
    assert found["blk.2.ffn_up_exps.weight"].shape == (8, 32, 64)
    assert found["output.weight"].source_dtype == "BF16"


def test_a_count_of_layers_that_no_model_has_is_refused_before_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**MIXTURE, "num_hidden_layers": 2_000_000_000}))
    with pytest.raises(FormatError, match="2000000000 layers are more than any model has"):
        outline(tmp_path)


def test_a_folder_whose_name_is_no_unicode_is_called_with_a_mark_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(reference_model.PATH / "config.json", folder / "config.json")
    assert outline(folder).name == "caf\ufffd"


def test_there_is_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTURE))
    with pytest.raises(MissingError, match=r"only the config\.json was read"):
        outline(tmp_path).tensors[0].read(0, 1)
