"""For every architecture row: llama.cpp on what we load computes what transformers computes on the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tersor.models.architectures import ARCHITECTURES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30_000.0},
}
PHI_HEAD = 20
PHI_FACTORS = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.8,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.4 * i for i in range(8)],
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: grouped heads of a free size, all biases, llama3 rope": (
        "LlamaConfig",
        {"head_dim": 20, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "llama: tied, linear rope": (
        "LlamaConfig",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama: one head a group": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama: yarn": ("LlamaConfig", {"rope_parameters": {**YARN, "attention_factor": 1.25}}),
    "mistral: Nemo's free head size": ("MistralConfig", {"head_dim": 24, "sliding_window": None}),
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "num_attention_heads": 4, "head_dim": 20},
    ),
    "qwen2": (
        "Qwen2Config",
        {"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2: tied, yarn": ("Qwen2Config", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 20}),
    "qwen3: tied": ("Qwen3Config", {"head_dim": 36, "tie_word_embeddings": True}),
    "qwen3moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 20,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 44,
            "norm_topk_prob": True,
        },
    ),
    "gemma2: window of 9, own attention scale": (
        "Gemma2Config",
        {"head_dim": 20, "sliding_window": 9, "query_pre_attn_scalar": 33, "num_hidden_layers": 4},
    ),
    "gemma3: window of 9, own attention scale, stretched global rope": (
        "Gemma3TextConfig",
        {
            "head_dim": 20,
            "sliding_window": 9,
            "query_pre_attn_scalar": 33,
            "num_hidden_layers": 7,
            "rope_parameters": GEMMA_ROPE,
            "vocab_size": 300,
        },
    ),
    "gemma3: layers in another pattern, soft cap": (
        "Gemma3TextConfig",
        {
            "head_dim": 20,
            "sliding_window": 9,
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 20.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": GEMMA_ROPE,
        },
    ),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "phi3: longrope on a part of each head, short texts": (
        "Phi3Config",
        {
            "hidden_size": 4 * PHI_HEAD,
            "num_attention_heads": 4,
            "original_max_position_embeddings": 384,  # the engine decides by its context, here 256
            "rope_parameters": PHI_FACTORS,
        },
    ),
    "phi3: longrope, long texts": (
        "Phi3Config",
        {
            "hidden_size": 4 * PHI_HEAD,
            "num_attention_heads": 4,
            "original_max_position_embeddings": 64,
            "rope_parameters": PHI_FACTORS,
            "tie_word_embeddings": True,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(
    case: str, build: Callable[..., Any], compare: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    config, settings = CASES[case]
    # llama.cpp looks GELU up in a half-precision table. Trained Gemmas add little to their residual per layer; random
    # ones with norms near 1 do not, and the rounding of the table alone would show as 2e-3 (see the next test).
    tiny = build(config, feed_forward_share=0.2, **{**SMALL, **settings})
    parity = compare(tiny)
    record_property("difference", parity.difference)
    print(f"{case:66s} {parity.difference:.1e} of rms {parity.scale:.2f}, same top {parity.same_top:.4f}")  # noqa: T201
    assert parity.difference <= 1e-3
    assert parity.same_top >= 0.999


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("gemma")])
def test_what_is_left_for_gemma_is_the_engines_half_precision_gelu(
    case: str, build: Callable[..., Any], compare: Callable[..., Any]
) -> None:
    config, settings = CASES[case]
    tiny = build(config, **{**SMALL, **settings})
    for layer in tiny.source.model.layers:
        del layer.mlp.act_fn  # a module; only a module may take its place
        layer.mlp.act_fn = _engine_gelu
    parity = compare(tiny)
    # Where an argument lies between two half-precision numbers the two sides may still fall apart, hence the median.
    assert parity.median <= 5e-5
    assert parity.difference <= 2e-3
    assert parity.same_top >= 0.999


def _engine_gelu(x: Any) -> Any:
    """GELU as ggml computes it on a CPU: argument and value rounded to half precision between -10 and 10."""
    rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, rounded))


def test_every_row_has_a_case() -> None:
    covered = {getattr(transformers, config).model_type for config, _ in CASES.values()}
    assert {row.model_types[0] for row in ARCHITECTURES} <= covered
