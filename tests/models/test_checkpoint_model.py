from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tersor.core.errors import FormatError, MissingError, ShapeError, UnsupportedError
from tersor.files.positional import PositionalFile
from tersor.models import Model, load

torch = pytest.importorskip("torch")

Edit: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], object]
Save: TypeAlias = Callable[..., Path]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture
def save(build: Callable[..., Any]) -> Save:
    """Return a function that saves a tiny model after `edit(config, tensors)`."""

    def make(config: str = "LlamaConfig", edit: Edit | None = None, **settings: Any) -> Path:
        folder: Path = build(config, **{**SMALL, **settings}).folder
        values = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        if edit is not None:
            edit(values, tensors)
        (folder / "config.json").write_text(json.dumps(values))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def contents(model: Model) -> dict[str, Any]:
    return {tensor.name: tensor.read(0, tensor.rows).reshape(tensor.shape) for tensor in model.tensors}


def assert_same(first: Model, second: Model) -> None:
    one, other = contents(first), contents(second)
    assert list(one) == list(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_tensors_come_in_file_order_embeddings_blocks_output(save: Save) -> None:
    model = load(save())
    assert model.tensors[0].name == "token_embd.weight"
    layers = [tensor.layer for tensor in model.tensors if tensor.layer is not None]
    assert layers == sorted(layers)
    assert [tensor.name for tensor in model.tensors[-2:]] == ["output_norm.weight", "output.weight"]


def test_norms_and_routers_are_kept_in_float32_and_matrices_are_not(save: Save) -> None:
    model = load(save("MixtralConfig", num_local_experts=3, num_experts_per_tok=2))
    kept = {tensor.kind for tensor in model.tensors if tensor.must_be_f32}
    assert kept == {"norm", "ffn_gate_inp"}


def test_tied_models_have_no_output_whichever_of_the_two_names_was_saved(save: Save) -> None:
    def rename(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    def copy(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    plain = load(save(tie_word_embeddings=True))
    assert "output.weight" not in {tensor.name for tensor in plain.tensors}
    assert_same(plain, load(save(edit=rename, tie_word_embeddings=True)))
    assert_same(plain, load(save(edit=copy, tie_word_embeddings=True)))


def test_an_untied_model_without_output_matrix_is_refused(save: Save) -> None:
    folder = save(edit=lambda _, tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(FormatError, match=r"lm_head.weight is missing; tie_word_embeddings is false"):
        load(folder)


@pytest.mark.parametrize("place", ["mlp", "block_sparse_moe"])
def test_mixtral_experts_read_the_same_from_stacks_and_from_single_tensors(save: Save, place: str) -> None:
    plain = load(save("MixtralConfig", num_local_experts=3, num_experts_per_tok=2))
    stacks = load(
        save(
            "MixtralConfig", lambda _, t: stack(t, place, "w1", "w3", "w2"), num_local_experts=3, num_experts_per_tok=2
        )
    )
    assert_same(plain, stacks)


def test_qwen3_experts_read_the_same_from_stacks_and_from_single_tensors(save: Save) -> None:
    settings = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True}
    plain = load(save("Qwen3MoeConfig", **settings))
    edited = save("Qwen3MoeConfig", lambda _, t: stack(t, "mlp", "gate_proj", "up_proj", "down_proj"), **settings)
    assert_same(plain, load(edited))


def stack(tensors: dict[str, Any], place: str, gate: str, up: str, down: str) -> None:
    """Rewrite experts of their own as transformers 5 holds them in memory: [experts, 2 · inner, hidden]."""
    for layer in range(2):
        old = f"model.layers.{layer}.{'mlp' if gate == 'gate_proj' else 'block_sparse_moe'}"
        new = f"model.layers.{layer}.{place}"
        parts = {
            name: np.stack([tensors.pop(f"{old}.experts.{expert}.{name}.weight") for expert in range(3)])
            for name in (gate, up, down)
        }
        tensors[f"{new}.experts.gate_up_proj"] = np.concatenate([parts[gate], parts[up]], axis=1)
        tensors[f"{new}.experts.down_proj"] = parts[down]
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")


@pytest.mark.parametrize(
    ("before", "after"), [("model.", "language_model.model."), ("model.", "model.language_model.")]
)
def test_the_text_part_of_a_multimodal_gemma_is_taken_and_the_rest_is_named(
    save: Save, before: str, after: str
) -> None:
    def wrap(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        text = dict(values)
        values.clear()
        values |= {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
        values |= {"vision_config": {"hidden_size": 8}, "mm_tokens_per_image": 256}
        for name in list(tensors):
            tensors[name.replace(before, after, 1)] = tensors.pop(name)
        tensors["vision_tower.patches.weight"] = np.ones((4, 4), np.float32)

    settings = {"head_dim": 16, "sliding_window": 8}
    plain, wrapped = load(save("Gemma3TextConfig", **settings)), load(save("Gemma3TextConfig", wrap, **settings))
    assert_same(plain, wrapped)
    assert plain.metadata == wrapped.metadata
    assert plain.notes == ()
    assert wrapped.notes == ("1 tensors that are not text were left out, the first 'vision_tower.patches.weight'",)


def test_rows_that_no_token_has_are_cut_from_gemma3_embeddings(save: Save) -> None:
    model = load(save("Gemma3TextConfig", vocab_size=320, head_dim=16, sliding_window=8))
    assert model.tensors[0].shape == (288, 32)
    assert model.metadata["gemma3.vocab_size"].value == 288


def test_embedding_rows_beyond_the_tokenizer_are_kept_elsewhere(save: Save) -> None:
    model = load(save(vocab_size=320))
    assert model.tensors[0].shape == (320, 32)
    assert model.tokenizer is not None
    assert len(model.tokenizer.tokens) == 320
    assert len(set(model.tokenizer.tokens)) == 320


def test_computed_buffers_of_old_checkpoints_are_ignored(save: Save) -> None:
    def add(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    assert_same(load(save()), load(save(edit=add)))


def test_a_tensor_without_a_place_stops_the_run_by_name(save: Save) -> None:
    def add(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.sinks"] = np.ones(4, np.float32)

    with pytest.raises(UnsupportedError, match=r"1 tensors have no place in llama.cpp's llama with 2 layers.*sinks"):
        load(save(edit=add))


def test_more_layers_than_config_json_says_stop_the_run(save: Save) -> None:
    folder = save(edit=lambda values, _: values.update(num_hidden_layers=1))
    with pytest.raises(UnsupportedError, match=r"no place in llama.cpp's llama with 1 layers.*model\.layers\.1\."):
        load(folder)


def test_fewer_layers_than_config_json_says_stop_the_run(save: Save) -> None:
    folder = save(edit=lambda values, _: values.update(num_hidden_layers=2_000_000_000))
    with pytest.raises(FormatError, match=r"model\.layers\.2\.input_layernorm\.weight is missing"):
        load(folder)


def test_an_output_bias_that_llama_cpp_would_not_add_stops_qwen3(save: Save) -> None:
    with pytest.raises(UnsupportedError, match=r"no place in llama.cpp's qwen3.*bias"):
        load(save("Qwen3Config", head_dim=16, attention_bias=True))


def test_a_tensor_of_another_shape_than_config_json_says_is_refused(save: Save) -> None:
    folder = save(edit=lambda values, _: values.update(intermediate_size=64))
    with pytest.raises(ShapeError, match=r"mlp\.\w+_proj\.weight is \(.*; config.json makes it"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("LlamaConfig", {"quantization_config": {"quant_method": "hqq"}}, "already quantized with 'hqq'"),
        ("LlamaConfig", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("LlamaConfig", {"residual_multiplier": 0.22}, "residual_multiplier = 0.22 is not known"),
        ("LlamaConfig", {"num_key_value_heads": 3}, "4 heads do not share 3"),
        (
            "LlamaConfig",
            {"architectures": ["FalconForCausalLM"]},
            "config.json: architecture 'FalconForCausalLM' is not supported; there are rows",
        ),
        ("Qwen2Config", {"head_dim": 16}, "4 heads of 16 are not hidden_size 32"),
        ("Gemma2Config", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ("Gemma2Config", {"layer_types": ["linear_attention"] * 2}, "layer_types"),
        ("Gemma3TextConfig", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ],
)
def test_a_switch_that_changes_the_mathematics_stops_the_run_by_name(
    save: Save, config: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        load(save(config, lambda values, _: values.update(change)))


def test_a_window_pattern_of_half_a_layer_is_a_format_error(save: Save) -> None:
    def halve(values: dict[str, Any], _: object) -> None:
        values["sliding_window_pattern"] = 0.5

    with pytest.raises(FormatError, match="sliding_window_pattern must be a whole number from 1"):
        load(save("Gemma3TextConfig", halve, head_dim=16, sliding_window=8))


def test_experts_whose_weights_are_not_normalised_are_refused(save: Save) -> None:
    with pytest.raises(UnsupportedError, match=r"norm_topk_prob = False; llama\.cpp's qwen3moe assumes True"):
        load(save("Qwen3MoeConfig", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=20))


def test_an_unknown_key_can_be_declared_harmless(save: Save) -> None:
    folder = save(edit=lambda values, _: values.update(house_number=4, switched_off=False))
    with pytest.raises(UnsupportedError, match=r"house_number = 4.*ignore_config=\('house_number',\)"):
        load(folder)
    assert load(folder, ignore_config=("house_number",)).architecture == "llama"


def test_a_sliding_window_that_llama_cpp_leaves_out_is_noted(save: Save) -> None:
    assert load(save("MistralConfig", sliding_window=None)).notes == ()
    (note,) = load(save("MistralConfig", sliding_window=64)).notes
    assert note.startswith("the source attends to the last 64 tokens")


def test_no_weight_is_read_by_loading_and_only_the_rows_asked_for_later(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save()
    model = load(folder)
    read: list[int] = []
    plain = PositionalFile.read

    def counting(self: PositionalFile, offset: int, count: int) -> bytearray:
        read.append(count)
        return plain(self, offset, count)

    monkeypatch.setattr(PositionalFile, "read", counting)
    query = next(tensor for tensor in model.tensors if tensor.name == "blk.0.attn_q.weight")
    query.read(3, 6)
    assert sum(read) == 3 * 32 * 4
    with pytest.raises(ShapeError, match="rows 31 to 33 asked for, it has 32"):
        query.read(31, 33)


def test_hashes_cover_weights_config_and_tokenizer(save: Save) -> None:
    folder = save()
    hashes = load(folder).hashes()
    assert set(hashes) >= {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert hashes["config.json"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


def test_shards_and_pickles_read_the_same_as_one_safetensors_file(build: Callable[..., Any], tmp_path: Path) -> None:
    tiny = build("LlamaConfig", **SMALL)
    plain = load(tiny.folder)
    shards, pickles = tmp_path / "shards", tmp_path / "pickles"
    for folder in (shards, pickles):
        folder.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_bytes((tiny.folder / name).read_bytes())
    tiny.source.save_pretrained(shards, max_shard_size="20KB")
    torch.save(tiny.source.state_dict(), pickles / "pytorch_model.bin")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert_same(plain, load(shards))
    assert_same(plain, load(pickles))
    assert_same(plain, load(pickles / "pytorch_model.bin"))


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no config\.json"):
        load(tmp_path)
