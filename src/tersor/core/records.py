"""Frozen dataclasses from and to JSON, strictly and by their type hints; and YAML that people write.

A type may hold text, whole numbers, numbers, truth values, Literal, None, tuples of one type, mappings from text, and
other such dataclasses. JSON has no word for infinity: those numbers are the texts "Infinity", "-Infinity" and "NaN".
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from tersor.core.errors import FormatError, MissingError

__all__ = ["fields_of", "from_json_text", "plain", "read_record", "read_text", "read_yaml", "to_json_text"]

Row = TypeVar("Row")

NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
LARGEST_WHOLE = 2**128
"""Whole numbers are below this: more than any count of bytes or seed, and still a number when made a float."""


@cache
def fields_of(row: type) -> Mapping[str, Any]:
    """Return name → type hint of every field of dataclass `row`, in order."""
    hints = get_type_hints(row)
    return {field.name: hints[field.name] for field in dataclasses.fields(row)}


def read_record(row: type[Row], document: object, place: str) -> Row:
    """Build dataclass `row` from parsed JSON: exactly its keys, each of its type; FormatError names the place.

    >>> from tersor.core.card import Artefact
    >>> read_record(Artefact, {"name": "a.gguf", "nbytes": 3, "sha256": ""}, "card").nbytes
    3
    """
    if not isinstance(document, dict):
        raise FormatError(f"{place}: an object is needed, got {type(document).__name__}")
    fields = fields_of(row)  # type: ignore[arg-type]  # every class is hashable
    if set(document) != set(fields):
        missing, unknown = sorted(set(fields) - set(document)), sorted(set(document) - set(fields))
        raise FormatError(f"{place}: missing keys {missing}, unknown keys {unknown}")
    return row(**{name: _value(hint, document[name], f"{place}: {name}") for name, hint in fields.items()})


def _value(hint: Any, value: object, place: str) -> Any:
    """Return `value` as type `hint`."""
    origin = get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read_record(hint, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise FormatError(f"{place}: a list is needed, got {type(value).__name__}")
        return tuple(_value(get_args(hint)[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise FormatError(f"{place}: an object is needed, got {type(value).__name__}")
        return {key: _value(get_args(hint)[1], item, f"{place}[{key!r:.60}]") for key, item in value.items()}
    for kind in get_args(hint) if origin in (types.UnionType, Union) else (hint,):
        matched, found = _scalar(kind, value)
        if matched:
            return found
    raise FormatError(f"{place} must be {spelled(hint)}, got {value!r:.60}")


def _scalar(kind: Any, value: object) -> tuple[bool, object]:
    """Return whether `value` is of the simple type `kind`, and what it is then; a truth value is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if kind is float:
        if isinstance(value, str):
            return value in NOT_FINITE, NOT_FINITE.get(value)
        is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST_WHOLE)
        return is_number and not isinstance(value, bool), float(value) if is_number else value  # type: ignore[arg-type]  # it is one
    if kind is int:
        return type(value) is int and abs(value) < LARGEST_WHOLE, value
    return isinstance(value, kind), value


def spelled(hint: Any) -> str:
    """Return a type as it is written in the source.

    >>> spelled(int | None), spelled(tuple[str, ...]), spelled(Literal["pass", "fail"])
    ('int | None', 'tuple[str, ...]', "'pass' | 'fail'")
    """
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def plain(value: object) -> Any:
    """Return a dataclass, or anything that stands in one, as what JSON can hold.

    >>> plain((1, math.inf, {"a": None}))
    [1, 'Infinity', {'a': None}]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def read_text(path: Path, *, most: int | None = None, too_large: str = "") -> str:
    """Return the text of a file in UTF-8; MissingError where it cannot be read, FormatError where it is no text.

    most       bytes that it may have; None: any number. `too_large` says in the error what is never larger
    """
    try:
        with path.open("rb") as file:
            data = file.read() if most is None else file.read(most + 1)
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
    if most is not None and len(data) > most:
        raise FormatError(f"{path}: more than {most:,} bytes; {too_large}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a text file ({error})") from error


def to_json_text(document: object) -> str:
    """Return plain values as a JSON document that any encoding of Unicode can hold.

    Names of files that are no Unicode reach Python as lone surrogates; these stand in the document as escapes.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_json_text(text: str, place: str) -> object:
    """Parse a JSON document; FormatError names `place`."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{place}: not a JSON document ({error})") from error


def read_yaml(text: str, place: str, *, depth: int | None = None) -> object:
    """Parse a YAML document; FormatError names `place`, and the lines where one mapping has a name twice.

    depth  refuse what a small text could be a huge or endless document with: aliases, and brackets deeper than this

    >>> read_yaml("a: {b: 1}", "x.yaml")
    {'a': {'b': 1}}
    """
    try:
        if depth is not None:
            _check_depth(text, depth)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_names(root)
        found: object = loader.construct_document(root)
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FormatError(f"{place}: not a YAML document ({' '.join(str(error).split())[:300]})") from error
    return found


def _check_names(root: yaml.Node) -> None:
    """Refuse a mapping with a name twice: YAML forbids it, and its reader takes the last."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # aliases are the same node: each is looked at once
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            waiting += [key, value]
            if isinstance(key, yaml.ScalarNode):
                before = first.setdefault((key.tag, key.value), key)
                if before is not key:
                    lines = f"{before.start_mark.line + 1} and {key.start_mark.line + 1}"
                    raise FormatError(f"{key.value!r:.100} stands twice, in lines {lines}; keep one of them")


def _check_depth(text: str, depth: int) -> None:
    found = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise FormatError("aliases have no place here; write every value out")
        found += isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
        found -= isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken)
        if found > depth:
            raise FormatError(f"brackets within brackets, more than {depth} deep")


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON number; write it as text")
