"""The `model` object of a tokenizer.json of type BPE, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersor.core.errors import FormatError, UnsupportedError
from tersor.models.tokenizers.source import TokenizerFiles, flag, integer, mapping, sequence, text

__all__ = ["BytePair"]

_LONGEST = 2048  # characters of a token whose making is traced; real ones stay below 600


@dataclass(frozen=True, slots=True)
class BytePair:
    """Byte-pair encoding: ids by token, and pairs in the order in which they are merged (rank 0 first)."""

    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    unknown: str | None
    byte_fallback: bool
    ignore_merges: bool

    @classmethod
    def read(cls, files: TokenizerFiles) -> BytePair:
        """From tokenizer.json; UnsupportedError for options no GGUF has, FormatError for merges of unknown tokens."""
        where = "tokenizer.json: model"
        model = mapping(files.tokenizer.get("model"), where)
        for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(option):
                raise UnsupportedError(f"{files.folder}: BPE with {option}={model[option]!r:.40} has no GGUF form")
        vocabulary = {
            text(token, f"{where}.vocab"): integer(id_, f"{where}.vocab[{token[:40]!r}]")
            for token, id_ in mapping(model.get("vocab"), f"{where}.vocab").items()
        }
        merges = tuple(_pair(item, where) for item in sequence(model.get("merges"), f"{where}.merges"))
        for left, right in merges:
            if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
                raise FormatError(
                    f"{where}.merges: {left!r:.40} + {right!r:.40} joins or makes a token that is not there"
                )
        unknown = model.get("unk_token")
        return cls(
            vocabulary,
            merges,
            None if unknown is None else text(unknown, f"{where}.unk_token"),
            flag(model.get("byte_fallback"), f"{where}.byte_fallback"),
            flag(model.get("ignore_merges"), f"{where}.ignore_merges"),
        )

    def unreachable(self, tokens: Mapping[str, int]) -> int:
        """How many of `tokens` the merges alone do not build from their own characters."""
        ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        return sum(not _builds(token, ranks) for token in tokens if len(token) > 1)


def _builds(token: str, ranks: Mapping[tuple[str, str], int]) -> bool:
    if len(token) > _LONGEST:
        return False
    parts = list(token)
    while len(parts) > 1:
        rank, at = min((ranks.get((parts[i], parts[i + 1]), len(ranks)), i) for i in range(len(parts) - 1))
        if rank == len(ranks):
            return False
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return True


def _pair(value: object, where: str) -> tuple[str, str]:
    """One merge, written "left right" before tokenizers 0.20 and [left, right] since."""
    parts = value.split(" ") if isinstance(value, str) else sequence(value, f"{where}.merges")
    if len(parts) != 2:
        raise FormatError(f"{where}.merges: a pair was expected, found {value!r:.60}")
    return text(parts[0], f"{where}.merges"), text(parts[1], f"{where}.merges")
