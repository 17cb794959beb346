"""What of a decoder grows with the text: its cache of keys and values, its attention, what lives while it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tersor.core.errors import UnsupportedError
from tersor.models.architectures import ARCHITECTURES

__all__ = ["DecoderShape", "shape_of"]

MOST_LAYERS = 1 << 14


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder.

    hidden, inner   widths of the residual stream and, together, of the feed-forward parts that one token uses
    query           width of all query heads
    key, value      width of all key and value heads, by layer
    windows         tokens back to which a layer attends, None: all; by layer
    vocabulary      rows of the output matrix
    context         tokens that it was trained for
    experts, used   of a mixture, and how many a token uses; 1 and 1 without
    """

    hidden: int
    inner: int
    query: int
    key: tuple[int, ...]
    value: tuple[int, ...]
    windows: tuple[int | None, ...]
    vocabulary: int
    context: int
    experts: int = 1
    used: int = 1

    def cached_values(self, tokens: int) -> int:
        """Return how many numbers the cache of one sequence of `tokens` holds, windows honoured."""
        return sum(
            min(tokens, window or tokens) * (key + value)
            for key, value, window in zip(self.key, self.value, self.windows, strict=True)
        )

    def attention_operations(self, tokens: int) -> float:
        """Return operations of the attention of a prompt, two a multiply-add: scores, and sums of values by them."""
        total = 0
        for window in self.windows:
            reach = min(tokens, window or tokens)
            total += reach * (reach + 1) // 2 + (tokens - reach) * reach  # pairs of a token and one it attends to
        return 2.0 * 2 * self.query * total

    def live_values(self, tokens: int, rows: int) -> int:
        """Return how many numbers live at once while `tokens` are evaluated: the wider half of a block, and logits.

        rows  tokens whose logits are wanted
        """
        attention = 3 * self.hidden + self.query + max(self.key, default=0) + max(self.value, default=0)
        feed_forward = 3 * self.hidden + 2 * self.inner
        return tokens * max(attention, feed_forward) + rows * self.vocabulary


def shape_of(architecture: str, metadata: Mapping[str, object], vocabulary: int) -> DecoderShape:
    """Read the sizes from the `{architecture}.*` keys of a GGUF; UnsupportedError for what is no plain decoder."""

    def numbers(key: str, default: int | None = None) -> list[int]:
        value = metadata.get(f"{architecture}.{key}", default)
        values: list[Any] = value if isinstance(value, list) else [value] * layers
        if len(values) != layers or not all(isinstance(one, int) and one >= 0 for one in values):
            raise UnsupportedError(f"{architecture}.{key} is {value!s:.60}: no size that an estimate can rest on")
        return values

    layers = 1
    layers = numbers("block_count")[0]
    if not 0 < layers <= MOST_LAYERS:
        raise UnsupportedError(f"{architecture}.block_count is {layers}: no model has so many layers")
    hidden, heads = numbers("embedding_length")[0], numbers("attention.head_count")
    key_heads = numbers("attention.head_count_kv", heads[0])
    keys = numbers("attention.key_length", hidden // max(heads[0], 1))
    values = numbers("attention.value_length", hidden // max(heads[0], 1))
    used, experts = numbers("expert_used_count", 0)[0], numbers("expert_count", 0)[0]
    inner = max(numbers("feed_forward_length"))
    width = max(numbers("expert_feed_forward_length", inner))
    return DecoderShape(
        hidden=hidden,
        inner=width * used if experts else inner,
        query=max(head * key for head, key in zip(heads, keys, strict=True)),
        key=tuple(head * key for head, key in zip(key_heads, keys, strict=True)),
        value=tuple(head * value for head, value in zip(key_heads, values, strict=True)),
        windows=_windows(architecture, metadata, layers),
        vocabulary=vocabulary,
        context=max(numbers("context_length", 0)),
        experts=max(experts, 1),
        used=max(used, 1),
    )


def _windows(architecture: str, metadata: Mapping[str, object], layers: int) -> tuple[int | None, ...]:
    """Return how far each layer looks back: what llama.cpp does with the keys, for architectures of our table."""
    window = metadata.get(f"{architecture}.attention.sliding_window")
    period = next((row.window for row in ARCHITECTURES if row.name == architecture), "none")
    if isinstance(period, str) or not isinstance(window, int) or window < 1:
        return (None,) * layers
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if not isinstance(pattern, list) or len(pattern) != layers:
        pattern = [(index + 1) % period != 0 for index in range(layers)]
    return tuple(window if slides else None for slides in pattern)
