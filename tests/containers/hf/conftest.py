"""A tiny Llama checkpoint of random numbers, and its matrices quantized by plain rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from tersor.containers.hf.writer import write_checkpoint
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.formats import get

torch = pytest.importorskip("torch", reason="the source is saved with torch: pip install 'tersor[torch]'")
safetensors = pytest.importorskip("safetensors.torch", reason="the source is saved with safetensors")

HIDDEN, INNER, KEY, VOCABULARY = 64, 96, 32, 40
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1,
    "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    f"{LAYER}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    f"{LAYER}self_attn.k_proj.weight": (KEY, HIDDEN),
    f"{LAYER}self_attn.v_proj.weight": (KEY, HIDDEN),
    f"{LAYER}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    f"{LAYER}mlp.gate_proj.weight": (INNER, HIDDEN),
    f"{LAYER}mlp.up_proj.weight": (INNER, HIDDEN),
    f"{LAYER}mlp.down_proj.weight": (HIDDEN, INNER),
    f"{LAYER}input_layernorm.weight": (HIDDEN,),
    f"{LAYER}post_attention_layernorm.weight": (HIDDEN,),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCABULARY, HIDDEN),
}
Write: TypeAlias = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the folder of the tiny model, in bfloat16 with float32 norms."""
    folder = tmp_path / "source"
    folder.mkdir()
    random = np.random.default_rng(4)
    tensors: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        values = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        tensors[name] = values if len(shape) == 1 else values.to(torch.bfloat16)
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.bin.txt").write_text("not needed by any engine")
    return folder


def matrices(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.tensors if name.endswith("proj.weight")]


def rounded(checkpoint: Checkpoint, formats: Mapping[str, Format]) -> Iterator[tuple[str, QuantizedTensor]]:
    for name, fmt in formats.items():
        weight = np.asarray(checkpoint.read(name), np.float32)
        yield name, QuantizedTensor(fmt, weight.shape, fmt.encode(weight))


@pytest.fixture
def write(source: Path, tmp_path: Path) -> Write:
    """Return a function that writes the tiny model into a container and returns the folder."""

    def made(container: str, name: str | dict[str, str], folder: str = "made", **options: Any) -> Path:
        paths, index, _ = weight_files(source)
        checkpoint = Checkpoint(paths, index)
        names = dict.fromkeys(matrices(checkpoint), name) if isinstance(name, str) else name
        formats = {tensor: get(spelled) for tensor, spelled in names.items()}
        output = tmp_path / folder
        tensors = options.pop("tensors", rounded(checkpoint, formats))
        write_checkpoint(source, checkpoint, formats, tensors, output, name=container, **options)
        checkpoint.close()
        return output

    return made
