from __future__ import annotations

import pytest

from tersor.core.errors import UnsupportedError
from tersor.evaluation.estimates.shape import DecoderShape, shape_of

LLAMA_2_7B = {
    "llama.block_count": 32, "llama.embedding_length": 4096, "llama.feed_forward_length": 11008,
    "llama.attention.head_count": 32, "llama.context_length": 4096,
}  # fmt: skip


def test_llama_2_7b_caches_half_a_mebibyte_a_token_in_16_bits() -> None:
    """A figure that is well known: 2 × 32 layers × 4096 × 2 bytes."""
    assert shape_of("llama", LLAMA_2_7B, 32000).cached_values(1) * 2 == 2**19


def test_grouped_heads_cache_less_and_layers_may_differ() -> None:
    grouped = shape_of("llama", {**LLAMA_2_7B, "llama.attention.head_count_kv": 8}, 32000)
    assert grouped.cached_values(10) * 4 == shape_of("llama", LLAMA_2_7B, 32000).cached_values(10)
    mixed = shape_of("llama", {**LLAMA_2_7B, "llama.attention.head_count_kv": [8] * 16 + [0] * 16}, 32000)
    assert mixed.cached_values(10) * 2 == grouped.cached_values(10)


def test_layers_with_a_window_keep_no_more_than_that() -> None:
    metadata = {key.replace("llama", "gemma3"): value for key, value in LLAMA_2_7B.items()}
    found = shape_of("gemma3", {**metadata, "gemma3.block_count": 6, "gemma3.attention.sliding_window": 100}, 32000)
    assert [window is None for window in found.windows] == [False] * 5 + [True]
    assert found.cached_values(1000) == 2 * 4096 * (5 * 100 + 1000)
    assert shape_of("llama", {**LLAMA_2_7B, "llama.attention.sliding_window": 100}, 9).windows == (None,) * 32


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
def test_attention_counts_every_pair_of_tokens_once(window: int | None) -> None:
    shape = DecoderShape(8, 8, 16, (4,), (4,), (window,), 10, 10)
    pairs = sum(1 for i in range(7) for j in range(i + 1) if window is None or i - j < window)
    assert shape.attention_operations(7) == pairs * 2 * (16 + 16)


def test_experts_that_a_token_uses_are_what_lives() -> None:
    metadata = {key.replace("llama", "qwen3moe"): value for key, value in LLAMA_2_7B.items()}
    metadata |= {"qwen3moe.expert_count": 128, "qwen3moe.expert_used_count": 8}
    found = shape_of("qwen3moe", {**metadata, "qwen3moe.expert_feed_forward_length": 768}, 32000)
    assert (found.inner, found.experts, found.used) == (8 * 768, 128, 8)


def test_what_is_no_decoder_is_refused_by_key() -> None:
    with pytest.raises(UnsupportedError, match=r"llama\.block_count is 4294967295"):
        shape_of("llama", {**LLAMA_2_7B, "llama.block_count": 2**32 - 1}, 10)
    with pytest.raises(UnsupportedError, match=r"mamba\.attention\.head_count is None"):
        shape_of("mamba", {"mamba.block_count": 2, "mamba.embedding_length": 8}, 10)
