"""A SentencePiece `tokenizer.model`, read from its protocol-buffer bytes without the library.

Source: sentencepiece's sentencepiece_model.proto. ModelProto: 1 pieces {1 piece, 2 score, 3 type}, 2 trainer
{3 model_type, 24 treat_whitespace_as_suffix, 40-43 unk/bos/eos/pad id}, 3 normalizer {2 precompiled_charsmap,
3 add_dummy_prefix, 4 remove_extra_whitespaces}.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tersor.core.errors import FormatError
from tersor.models.tokenizers.gguf_tokenizer import TokenType
from tersor.models.tokenizers.vocabulary import Piece

__all__ = ["SentencePieceModel", "parse"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}
_IDS = {40: ("unk", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("pad", -1)}
_NEGATIVE = 1 << 63


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What of a model decides its tokens; ids of special tokens that do not exist are left out."""

    kind: str
    pieces: tuple[Piece, ...]
    special_ids: Mapping[str, int]
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    whitespace_suffix: bool
    has_normalizer: bool


def parse(data: bytes, where: str) -> SentencePieceModel:
    """The model in `data`; FormatError if it is not a well-formed SentencePiece model."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data, where):
        if number == 1:
            pieces.append(_piece(_message(value, where), where))
        elif number == 2:
            trainer |= dict(_fields(_message(value, where), where))
        elif number == 3:
            normalizer |= dict(_fields(_message(value, where), where))
    if not pieces:
        raise FormatError(f"{where}: not a SentencePiece model: it holds no pieces")
    special = {}
    for number, (name, default) in _IDS.items():
        id_ = _whole(trainer.get(number, default))
        if 0 <= id_ < len(pieces):
            special[name] = id_
    return SentencePieceModel(
        kind=_KINDS.get(_whole(trainer.get(3, 1)), "unknown"),
        pieces=tuple(pieces),
        special_ids=special,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        whitespace_suffix=bool(trainer.get(24, 0)),
        has_normalizer=bool(normalizer.get(2, b"")),
    )


def _piece(data: bytes, where: str) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data, where):
        if number == 1:
            try:
                text = _message(value, where).decode()
            except UnicodeDecodeError as error:
                raise FormatError(f"{where}: a piece is not UTF-8: {error}") from error
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3:
            kind = _whole(value)
    if kind not in set(TokenType):
        raise FormatError(f"{where}: piece {text!r:.60} has the unknown type {kind}")
    return Piece(text, TokenType(kind), score)


def _message(value: int | bytes, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError(f"{where}: not a SentencePiece model: a number where a message was expected")
    return value


def _whole(value: int | bytes) -> int:
    if not isinstance(value, int):
        return -1
    return value - (1 << 64) if value >= _NEGATIVE else value


def _fields(data: bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and raw values of one message: integers for varints, bytes for all else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, where)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, where)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, where)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise FormatError(f"{where}: not a SentencePiece model: wire type {wire} at byte {at}")
        if number == 0 or size > len(data) - at:
            raise FormatError(f"{where}: not a SentencePiece model, or truncated, at byte {at}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise FormatError(f"{where}: not a SentencePiece model, or truncated, at byte {at}")
