"""The list of tokens of a GGUF, assembled from numbered pieces: complete, unique, as long as the embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import FormatError, UnsupportedError
from tersor.models.tokenizers.gguf_tokenizer import TokenType
from tersor.models.tokenizers.source import AddedToken

__all__ = ["SPACE", "Piece", "Vocabulary", "check_size", "rowless_notes", "stripping_notes", "with_added"]

SPACE = "▁"
"""U+2581, which SentencePiece vocabularies write for a space."""

_MOST_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class Piece:
    """One token before assembly."""

    text: str
    type: TokenType
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in id order with their types and scores, and the id of every source text."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    ids: Mapping[str, int]

    @classmethod
    def assemble(cls, pieces: Mapping[int, Piece], size: int, folder: Path, *, marks_spaces: bool) -> Vocabulary:
        """`pieces` by id, gaps and the end filled with unused `[PADi]`.

        marks_spaces  whether ▁ stands for a space: it is turned into one in user-defined tokens

        UnsupportedError if an id is not below `size`; FormatError if two ids have one text.
        """
        highest = max(pieces, default=-1)
        if highest >= size:
            raise UnsupportedError(
                f"{folder}: the tokenizer has token id {highest} ({pieces[highest].text!r:.60}), but the embedding has "
                f"only {size} rows; enlarge the embedding or remove the surplus tokens"
            )
        ids: dict[str, int] = {}
        for id_ in sorted(pieces):
            first = ids.setdefault(pieces[id_].text, id_)
            if first != id_:
                raise FormatError(f"{folder}: tokens {first} and {id_} are both {pieces[id_].text!r:.60}")
        tokens, taken = [], set(ids)
        for id_ in range(size):
            text = pieces[id_].text if id_ in pieces else _unused(id_, taken)
            if "\0" in text:
                raise UnsupportedError(f"token {text!r:.60} holds a NUL character, which a GGUF cannot hold")
            tokens.append(_plain(pieces.get(id_), text, taken) if marks_spaces else text)
        filler = Piece("", TokenType.UNUSED)
        types = tuple(int(pieces.get(id_, filler).type) for id_ in range(size))
        scores = tuple(float(pieces.get(id_, filler).score) for id_ in range(size))
        return cls(tuple(tokens), types, scores, ids)


def check_size(size: int, folder: Path) -> None:
    """FormatError unless `size` is a possible number of tokens."""
    if not 0 < size <= _MOST_TOKENS:
        raise FormatError(f"{folder}: a vocabulary of {size} tokens; 1 to {_MOST_TOKENS} are possible")


def with_added(pieces: Mapping[int, Piece], added: Iterable[AddedToken], folder: Path) -> dict[int, Piece]:
    """`pieces` and the added tokens: special ones as control, others as user-defined; unknown and byte types stay.

    FormatError if an added token gives a known id another text.
    """
    merged = dict(pieces)
    for token in added:
        known = merged.get(token.id)
        if known is not None and known.text != token.content:
            raise FormatError(
                f"{folder}: id {token.id} is {known.text!r:.60} in the vocabulary, {token.content!r:.60} as added token"
            )
        kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        if known is not None and known.type in (TokenType.UNKNOWN, TokenType.BYTE):
            kind = known.type
        merged[token.id] = Piece(token.content, kind, known.score if known else -float(1 << 23) - token.id)
    return merged


def stripping_notes(added: Iterable[AddedToken]) -> list[str]:
    """A note on added tokens that swallow the white space beside them, which a GGUF cannot say."""
    taking = [token for token in added if token.lstrip or token.rstrip or token.single_word]
    if not taking:
        return []
    note = f"{_counted(taking)} take the white space beside them or match whole words only"
    return [f"{note}; llama.cpp does neither"]


def rowless_notes(left: Sequence[AddedToken], size: int) -> list[str]:
    """A note on added tokens that were left out since the embedding has only `size` rows."""
    return [f"{_counted(left)} lie beyond the {size} rows of the embedding: they were left out"] if left else []


def _counted(added: Sequence[AddedToken]) -> str:
    shown = ", ".join(repr(token.content) for token in added[:4]) + (" …" if len(added) > 4 else "")
    return f"{len(added)} added tokens ({shown})"


def _unused(id_: int, taken: set[str]) -> str:
    text = f"[PAD{id_}]"
    while text in taken:
        text += "_"
    taken.add(text)
    return text


def _plain(piece: Piece | None, text: str, taken: set[str]) -> str:
    """User-defined tokens are looked for before spaces become ▁, so they must hold plain spaces."""
    if piece is None or piece.type is not TokenType.USER_DEFINED or SPACE not in text:
        return text
    plain = text.replace(SPACE, " ")
    if plain in taken:
        return text
    taken.add(plain)
    return plain
