"""The published JSON Schema of the Card: from the type hints of its dataclasses, with the words of their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from tersor.core.card import Card
from tersor.core.records import LARGEST_WHOLE, NOT_FINITE, fields_of

__all__ = ["card_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ROW = re.compile(r"^(\w+(?:, \w+)*)\s{2,}(\S.*)$")
_SIMPLE: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "exclusiveMinimum": -LARGEST_WHOLE, "exclusiveMaximum": LARGEST_WHOLE},
    float: {"anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]},
    type(None): {"type": "null"},
}


def card_schema() -> dict[str, Any]:
    """Return the schema of a saved Card, which holds a summary of derived numbers besides its fields."""
    definitions: dict[str, Any] = {}
    _define(Card, definitions)
    card = definitions.pop("Card")
    card["properties"]["summary"] = {
        "type": "object",
        "description": "Derived from the other fields, for whoever reads the file; not read back.",
    }
    return {"$schema": DIALECT, "title": "Card", **card, "$defs": dict(sorted(definitions.items()))}


def _define(row: type, definitions: dict[str, Any]) -> None:
    """Put the schema of dataclass `row`, and of all in it, into `definitions`."""
    definitions[row.__name__] = {}
    text, words = _documented(row)
    defaults = {field.name: field.default for field in dataclasses.fields(row)}
    properties = {}
    for name, hint in fields_of(row).items():
        kind = {"const": defaults[name]} if name == "schema" else _kind(hint, definitions)
        properties[name] = kind | ({"description": words[name]} if name in words else {})
    definitions[row.__name__] = {
        "description": text,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _kind(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if hint.__name__ not in definitions:
            _define(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is tuple:
        return {"type": "array", "items": _kind(get_args(hint)[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _kind(get_args(hint)[1], definitions)}
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin is types.UnionType:
        return {"anyOf": [_kind(kind, definitions) for kind in get_args(hint)]}
    return dict(_SIMPLE[hint])


def _documented(row: type) -> tuple[str, dict[str, str]]:
    """Return the first sentence of a docstring, and what its table says of each field."""
    lines = inspect.cleandoc(row.__doc__ or "").splitlines()
    words: dict[str, str] = {}
    names: list[str] = []
    for line in lines[1:]:
        match = _ROW.match(line)
        if match:
            names = match[1].split(", ")
            words |= dict.fromkeys(names, match[2])
        elif line.startswith(" ") and names:
            words |= {name: f"{words[name]} {line.strip()}" for name in names}
        else:
            names = []
    return lines[0], {name: text for name, text in words.items() if name in fields_of(row)}
