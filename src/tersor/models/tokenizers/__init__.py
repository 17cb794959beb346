"""Tokenizers of checkpoints, in the terms of a GGUF."""

from __future__ import annotations

from tersor.models.tokenizers.gguf_tokenizer import GgufTokenizer, TokenType
from tersor.models.tokenizers.load import load_tokenizer

__all__ = ["GgufTokenizer", "TokenType", "load_tokenizer"]
