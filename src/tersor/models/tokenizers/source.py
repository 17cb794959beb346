"""The tokenizer files of a checkpoint folder, read with limits and checked as far as their JSON types.

Nothing here is trusted: files have a size limit, JSON may nest or lie as it likes, and every value passes through
`mapping`, `sequence`, `text` or `integer` before use, which name the place in their FormatError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from tersor.core.errors import FormatError

__all__ = ["AddedToken", "TokenizerFiles", "flag", "integer", "mapping", "sequence", "text"]

_LARGE, _SMALL = 64 << 20, 16 << 20


def mapping(value: object, where: str) -> Mapping[str, object]:
    """`value` if it is a JSON object, empty if it is null."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"{where}: an object was expected, found {_kind(value)}")
    return cast("Mapping[str, object]", value)


def sequence(value: object, where: str) -> Sequence[object]:
    """`value` if it is a JSON array, empty if it is null."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise FormatError(f"{where}: an array was expected, found {_kind(value)}")
    return cast("Sequence[object]", value)


def text(value: object, where: str) -> str:
    """`value` if it is a string of valid Unicode."""
    if not isinstance(value, str):
        raise FormatError(f"{where}: a string was expected, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: the string holds a lone surrogate: {error}") from error
    return value


def integer(value: object, where: str) -> int:
    """`value` if it is a whole number from 0 up to 2^31 - 1: a token id."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise FormatError(f"{where}: a token id (0 to 2^31 - 1) was expected, found {_kind(value)}")
    return value


def flag(value: object, where: str, *, default: bool = False) -> bool:
    """`value` if it is a JSON boolean, `default` if it is null."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise FormatError(f"{where}: true or false was expected, found {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token cut out of the text before anything else; `special` ones are control tokens."""

    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool

    @classmethod
    def read(cls, id_: int, value: object, where: str) -> AddedToken:
        """From one entry of `added_tokens` or `added_tokens_decoder`."""
        entry = mapping(value, where)
        flags = {
            name: flag(entry.get(name), f"{where}.{name}")
            for name in ("special", "normalized", "lstrip", "rstrip", "single_word")
        }
        return cls(id_, text(entry.get("content"), f"{where}.content"), **flags)


class TokenizerFiles:
    """The tokenizer's files in `folder`, each parsed once, on first use; absent ones are empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether the folder holds the file `name`."""
        return (self.folder / name).is_file()

    def read_bytes(self, name: str, limit: int = _LARGE) -> bytes:
        """The content of `name`; FormatError above `limit` bytes."""
        path = self.folder / name
        try:
            size = path.stat().st_size
            if size > limit:
                raise FormatError(f"{path}: {size} bytes; a file of this kind has at most {limit}")
            return path.read_bytes()
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {error}") from error

    def read_text(self, name: str, limit: int = _SMALL) -> str:
        """The content of `name` as UTF-8."""
        try:
            return self.read_bytes(name, limit).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.folder / name}: not UTF-8: {error}") from error

    def json(self, name: str, limit: int = _SMALL) -> Mapping[str, object]:
        """The object in `name`, empty if there is no such file."""
        if not self.has(name):
            return {}
        where = str(self.folder / name)
        try:
            value = json.loads(self.read_text(name, limit))
        except RecursionError as error:
            raise FormatError(f"{where}: the JSON nests too deeply") from error
        except ValueError as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: not JSON: {error}") from error
        return mapping(value, where)

    @cached_property
    def tokenizer(self) -> Mapping[str, object]:
        """tokenizer.json"""
        return self.json("tokenizer.json", _LARGE)

    @cached_property
    def config(self) -> Mapping[str, object]:
        """tokenizer_config.json"""
        return self.json("tokenizer_config.json")

    @cached_property
    def special_map(self) -> Mapping[str, object]:
        """special_tokens_map.json"""
        return self.json("special_tokens_map.json")

    @cached_property
    def model_config(self) -> Mapping[str, object]:
        """config.json"""
        return self.json("config.json")

    @cached_property
    def generation_config(self) -> Mapping[str, object]:
        """generation_config.json"""
        return self.json("generation_config.json")

    @cached_property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """Every added token by id: tokenizer.json's, tokenizer_config.json's, then added_tokens.json's.

        An id that two files give different texts is a FormatError.
        """
        found: dict[int, AddedToken] = {}
        for token in (*self._from_tokenizer(), *self._from_config(), *self._from_plain()):
            known = found.setdefault(token.id, token)
            if known.content != token.content:
                raise FormatError(
                    f"{self.folder}: id {token.id} is {known.content!r} in one tokenizer file and "
                    f"{token.content!r} in another"
                )
        return tuple(found[id_] for id_ in sorted(found))

    def _from_tokenizer(self) -> list[AddedToken]:
        tokens = []
        for index, value in enumerate(sequence(self.tokenizer.get("added_tokens"), "tokenizer.json: added_tokens")):
            where = f"tokenizer.json: added_tokens[{index}]"
            tokens.append(AddedToken.read(integer(mapping(value, where).get("id"), f"{where}.id"), value, where))
        return tokens

    def _from_config(self) -> list[AddedToken]:
        tokens = []
        decoder = mapping(self.config.get("added_tokens_decoder"), "tokenizer_config.json: added_tokens_decoder")
        for key, value in decoder.items():
            where = f"tokenizer_config.json: added_tokens_decoder[{key[:20]!r}]"
            id_ = int(key) if key.isascii() and key.isdigit() and len(key) < 11 else None
            tokens.append(AddedToken.read(integer(id_, where), value, where))
        return tokens

    def _from_plain(self) -> list[AddedToken]:
        tokens = []
        for content, value in self.json("added_tokens.json").items():
            where = f"added_tokens.json: {content[:40]!r}"
            entry = AddedToken(integer(value, where), text(content, where), False, True, False, False, False)
            tokens.append(entry)
        return tokens
