"""Attention against its definition, a token and a head at a time in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from tersor.decoder.attention import attend

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch")


def defined(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Return what the words say."""
    batch, tokens, heads, _ = query.shape
    made = torch.empty(query.shape, dtype=torch.float64)
    for text in range(batch):
        for head in range(heads):
            group = head // (heads // key.shape[2])
            for token in range(tokens):
                seen = slice(0 if window is None else max(token - window + 1, 0), token + 1)
                scores = key[text, seen, group].double() @ query[text, token, head].double() * scale
                scores = scores if cap is None else cap * torch.tanh(scores / cap)
                made[text, token, head] = torch.softmax(scores, 0) @ value[text, seen, group].double()
    return made.flatten(2)


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 9, 270, 300])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2)])
def test_attention_is_what_it_is_defined_as(cap: float | None, window: int | None, heads: int, key_heads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 290, heads, 6, generator=generator)  # more tokens than are scored at a time
    key, value = torch.randn(2, 1, 290, key_heads, 6, generator=generator)
    expected = defined(query, key, value, scale=1 / math.sqrt(6), cap=cap, window=window)
    made = attend(query, key, value, scale=1 / math.sqrt(6), cap=cap, window=window)
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [None, 9])
def test_attention_is_made_in_full_precision_beside_products_that_are_not(window: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 20, 4, 6, generator=generator)
    key, value = torch.randn(2, 1, 20, 2, 6, generator=generator)
    wanted = attend(query, key, value, scale=0.4, window=window)
    with torch.autocast("cpu", torch.bfloat16):
        made = attend(query, key, value.to(torch.bfloat16), scale=0.4, window=window)
        exact = attend(query, key, value, scale=0.4, window=window)
    assert made.dtype == exact.dtype == torch.float32
    torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(made, wanted, rtol=0, atol=2e-2)
