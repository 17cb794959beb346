from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tersor.containers.hf.table import format_for
from tersor.containers.hf.writer import write_checkpoint
from tersor.core.errors import UnsupportedError
from tersor.core.tensor import QuantizedTensor
from tersor.engines.torch.checkpoints import load_quantized
from tersor.evaluation.speed.traffic import Weight, gguf_traffic, model_traffic, weigh
from tersor.files.checkpoint import Checkpoint
from tersor.formats import get

EMBEDDING = Weight("token_embd.weight", (100, 8), 3200, "F32")
BLOCK = Weight("blk.0.ffn_up.weight", (16, 8), 512, "F32")
NORM = Weight("blk.0.attn_norm.weight", (8,), 32, "F32")
OUTPUT = Weight("output.weight", (100, 8), 3200, "F32")


def test_rows_that_are_looked_up_are_not_read_whole() -> None:
    found = weigh([EMBEDDING, Weight("position_embd.weight", (64, 8), 2048, "F32"), BLOCK, NORM, OUTPUT], {}, 9)
    assert (found.weight_bytes, found.body, found.head) == (512 + 32 + 3200, 128, 800)
    assert (found.is_integer, found.is_mixture, found.file_bytes) == (False, False, 9)


def test_a_tied_embedding_is_read_as_the_output_matrix() -> None:
    found = weigh([EMBEDDING, BLOCK], {}, 9)
    assert (found.weight_bytes, found.body, found.head) == (3200 + 512, 128, 800)


def test_only_the_experts_that_are_used_count() -> None:
    metadata = {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 8, "qwen3moe.expert_used_count": 2}
    experts = Weight("blk.0.ffn_up_exps.weight", (8, 16, 8), 4096, "F32")
    router, shared = Weight("blk.0.ffn_gate_inp.weight", (8, 8), 256, "F32"), BLOCK
    found = weigh([EMBEDDING, experts, router, shared, OUTPUT], metadata, 9)
    assert found.weight_bytes == 1024 + 256 + 512 + 3200
    assert found.body == 256 + 64 + 128
    assert found.is_mixture


def test_a_prompt_needs_the_output_matrix_once() -> None:
    assert weigh([EMBEDDING, BLOCK, OUTPUT], {}, 9).prompt_operations(10) == 2 * (128 * 10 + 800)


def test_most_weights_decide_whether_the_engine_computes_in_integers() -> None:
    quantized = Weight("blk.0.ffn_up.weight", (16, 8), 512, "Q4_K")
    assert weigh([quantized, NORM], {}, 9).is_integer
    assert not weigh([quantized, OUTPUT], {}, 9).is_integer


def test_a_gguf_is_weighed_by_its_header(tiny_gguf: Callable[..., Path]) -> None:
    found = gguf_traffic(tiny_gguf())
    blocks = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert (found.body, found.head) == (blocks, 300 * 64)
    assert found.weight_bytes == 4 * (blocks + 300 * 64 + 5 * 64)
    assert found.file_bytes == tiny_gguf().stat().st_size


def test_a_checkpoint_is_weighed_in_the_type_that_transformers_holds_it_in(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="builds a checkpoint")
    transformers = pytest.importorskip("transformers", reason="builds a checkpoint")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "float")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    whole, half = model_traffic(tmp_path / "float"), model_traffic(tmp_path / "half")
    weights = 4 * 32 * 32 + 3 * 48 * 32
    assert (whole.body, whole.head) == (weights, 64 * 32)
    assert whole.weight_bytes == 4 * (weights + 64 * 32 + 3 * 32)
    assert half.weight_bytes * 2 == whole.weight_bytes
    assert whole.file_bytes == (tmp_path / "float" / "model.safetensors").stat().st_size


def test_an_architecture_without_a_table_row_has_no_traffic(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard"}')
    with pytest.raises(UnsupportedError, match="UnheardOfForCausalLM"):
        model_traffic(tmp_path)


def quantized(folder: Path, name: str, text: str, **sizes: int) -> Path:
    """Return a checkpoint in the container `name` whose matrices of blocks are in the format `text`."""
    transformers = pytest.importorskip("transformers", reason="builds a checkpoint")
    config = transformers.LlamaConfig(
        vocab_size=64, num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=False, **sizes
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "float")
    with contextlib.closing(Checkpoint([folder / "float" / "model.safetensors"])) as source:
        fmt = format_for(name, get(text), "F32")
        formats = {name: fmt for name in source.tensors if name.endswith("proj.weight")}
        weights = ((name, np.asarray(source.read(name), np.float32)) for name in formats)
        tensors = ((name, QuantizedTensor(fmt, w.shape, fmt.encode(w))) for name, w in weights)
        write_checkpoint(folder / "float", source, formats, tensors, folder / name, name=name)
    return folder / name


def test_a_quantized_checkpoint_is_weighed_in_its_integers(tmp_path: Path) -> None:
    found = model_traffic(quantized(tmp_path, "gptq", "int4-g16", hidden_size=32, intermediate_size=48))
    weights_count = 4 * 32 * 32 + 3 * 48 * 32
    assert found.body == weights_count
    assert found.weight_bytes == weights_count // 16 * 10 + 4 * (64 * 32 + 3 * 32)  # 16 codes and a scale: 10 bytes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("gptq", f"int{bits}-g128-{kind}") for bits in (2, 3, 4, 8) for kind in ("sym", "asym")),
        ("gptq", "int3-channel"),
        ("awq", "int4-g128-asym"),
        *(("compressed-tensors", f"int4-g128-{kind}") for kind in ("sym", "asym", "sym-bf16")),
        ("compressed-tensors", "int8-channel-sym-f32"),
        ("compressed-tensors", "int4-g8"),  # which no kernel takes: decoded
    ],
)
def test_a_token_reads_of_integers_what_the_kernels_hold(tmp_path: Path, name: str, text: str) -> None:
    folder = quantized(tmp_path, name, text, hidden_size=128, intermediate_size=256, num_key_value_heads=1)
    model = load_quantized(folder)
    packed = [module._packed.nbytes for module in model.modules() if hasattr(module, "_packed")]
    floats = sum(weight.nbytes for place, weight in model.named_parameters() if "embed_tokens" not in place)
    assert len(packed) == (0 if text == "int4-g8" else 7)
    assert model_traffic(folder).weight_bytes == sum(packed) + floats
