"""A tokenizer in the terms of a GGUF: the values of its `tokenizer.*` keys.

Source: the key names and token types are those of llama.cpp's gguf constants; `unknown_token_id`,
`padding_token_id` and the misspelt `seperator_token_id` are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tersor.core.metadata import MetadataEntry

__all__ = ["SPECIAL_KEYS", "GgufTokenizer", "TokenType"]

SPECIAL_KEYS: Mapping[str, str] = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
"""Our short name of a special token and the GGUF key that holds its id."""


class TokenType(IntEnum):
    """Values of tokenizer.ggml.token_type, equal to those in a SentencePiece model."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufTokenizer:
    """All that llama.cpp needs to tokenize as the source does.

    model              "llama" (SentencePiece style, merges by score) or "gpt2" (byte-level, merges by rank)
    pre                name of llama.cpp's set of splitting regexes; None for "llama"
    tokens             one text an id, all different, as many as the embedding has rows
    types              a TokenType an id
    scores             "llama": one an id; the pair whose union scores highest is merged first
    merges             "gpt2": "left right", most frequent first
    special_ids        keys of SPECIAL_KEYS
    add_bos, add_eos   whether encoding adds them; None leaves the engine's default
    add_space_prefix   "llama": a space is put before the text
    chat_templates     Jinja sources by name, "" the default
    alphabet           characters that can be encoded; None means all. Others abort llama.cpp ("llama") or are
                       dropped ("gpt2")
    notes              sentences on what the engine does otherwise than the source, empty if nothing is known
    """

    model: str
    pre: str | None
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    special_ids: Mapping[str, int]
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    chat_templates: Mapping[str, str]
    alphabet: frozenset[str] | None = None
    notes: tuple[str, ...] = field(default=())

    def metadata(self) -> dict[str, MetadataEntry]:
        """The `tokenizer.*` keys, in the order in which they are written."""
        entries = {"tokenizer.ggml.model": MetadataEntry(self.model, "str")}
        if self.pre is not None:
            entries["tokenizer.ggml.pre"] = MetadataEntry(self.pre, "str")
        entries["tokenizer.ggml.tokens"] = MetadataEntry(list(self.tokens), "[str]")
        if self.scores is not None:
            entries["tokenizer.ggml.scores"] = MetadataEntry(list(self.scores), "[f32]")
        entries["tokenizer.ggml.token_type"] = MetadataEntry([int(kind) for kind in self.types], "[i32]")
        if self.merges is not None:
            entries["tokenizer.ggml.merges"] = MetadataEntry(list(self.merges), "[str]")
        for name, key in SPECIAL_KEYS.items():
            if name in self.special_ids:
                entries[key] = MetadataEntry(self.special_ids[name], "u32")
        for key, flag in (
            ("add_bos_token", self.add_bos),
            ("add_eos_token", self.add_eos),
            ("add_space_prefix", self.add_space_prefix),
        ):
            if flag is not None:
                entries[f"tokenizer.ggml.{key}"] = MetadataEntry(flag, "bool")
        return entries | self._chat_entries()

    def _chat_entries(self) -> dict[str, MetadataEntry]:
        entries = {}
        named = [name for name in self.chat_templates if name]
        if named:
            entries["tokenizer.chat_templates"] = MetadataEntry(list(named), "[str]")
        for name, text in self.chat_templates.items():
            key = f"tokenizer.chat_template.{name}" if name else "tokenizer.chat_template"
            entries[key] = MetadataEntry(text, "str")
        return entries
