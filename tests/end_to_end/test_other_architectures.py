"""A GGUF of an architecture that has no row here is rounded where llama.cpp takes rounded weights, and there alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.containers.gguf import write_gguf
from tersor.core.metadata import MetadataEntry as Entry
from tersor.core.plan import PlannedTensor
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models import load
from tersor.pipeline.quantize import quantize

WIDTH, INNER, STATE, STEPS, TOKENS = 64, 128, 16, 32, 300


def mamba(path: Path) -> Path:
    """Write a Mamba of one block with random weights."""
    keys = {"context_length": 64, "embedding_length": WIDTH, "feed_forward_length": 0, "block_count": 1}
    keys |= {"attention.head_count": 0, "ssm.conv_kernel": 4, "ssm.inner_size": INNER, "ssm.state_size": STATE}
    keys |= {"ssm.time_step_rank": STEPS}
    letters = [chr(index) if 33 <= index < 127 else chr(0x200 + index) for index in range(TOKENS)]
    metadata = {
        "general.architecture": Entry("mamba", "str"),
        "general.name": Entry("tiny", "str"),
        **{f"mamba.{key}": Entry(value, "u32") for key, value in keys.items()},
        "mamba.attention.layer_norm_rms_epsilon": Entry(1e-5, "f32"),
        "tokenizer.ggml.model": Entry("gpt2", "str"),
        "tokenizer.ggml.pre": Entry("gpt-2", "str"),
        "tokenizer.ggml.tokens": Entry(letters, "[str]"),
        "tokenizer.ggml.token_type": Entry([1] * TOKENS, "[i32]"),
        "tokenizer.ggml.merges": Entry(["a b"], "[str]"),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (TOKENS, WIDTH),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ssm_in.weight": (2 * INNER, WIDTH),
        "blk.0.ssm_conv1d.weight": (INNER, 4),
        "blk.0.ssm_conv1d.bias": (INNER,),
        "blk.0.ssm_x.weight": (STEPS + 2 * STATE, INNER),
        "blk.0.ssm_dt.weight": (INNER, STEPS),
        "blk.0.ssm_dt.bias": (INNER,),
        "blk.0.ssm_a": (INNER, STATE),
        "blk.0.ssm_d": (INNER,),
        "blk.0.ssm_out.weight": (WIDTH, INNER),
        "output_norm.weight": (WIDTH,),
    }
    random = np.random.default_rng(0)
    values = {name: random.standard_normal(shape, dtype=np.float32) / 8 for name, shape in shapes.items()}
    values["blk.0.ssm_a"] = -np.abs(values["blk.0.ssm_a"]) - 0.5
    rows = [PlannedTensor(name, shape, "F32", "f32", "", "", values[name].nbytes) for name, shape in shapes.items()]
    write_gguf(path, metadata, rows, ((name, value.view(np.uint8)) for name, value in values.items()))
    return path


@pytest.mark.parametrize("name", ["q8_0", "q4_k_m"])
def test_a_mamba_runs_and_answers_nearly_as_its_source(name: str, tmp_path: Path) -> None:
    source = mamba(tmp_path / "source.gguf")
    card = quantize(load(source), name, tmp_path / "small.gguf")
    kept = {tensor.name for tensor in card.plan.tensors if tensor.format == "f32" and len(tensor.shape) > 1}
    assert kept == {"blk.0.ssm_conv1d.weight", "blk.0.ssm_a"}
    logits = []
    for path in (source, tmp_path / "small.gguf"):
        with LlamaCpp(path, context=32) as engine:
            logits.append(engine.logits(list(range(40, 60))))
    distance = np.sqrt(np.mean((logits[1] - logits[0]) ** 2) / np.mean(logits[0] ** 2))
    assert distance < (0.02 if name == "q8_0" else 0.2)
