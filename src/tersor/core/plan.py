"""The plan: what is to become of every tensor, decided before a single weight is read."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tersor.core.errors import FormatError, MissingError

__all__ = ["PLAN_SCHEMA", "Plan", "PlannedTensor", "Recipe", "from_json_object"]

PLAN_SCHEMA = "tersor.plan/1"

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor and what it becomes.

    shape   NumPy order: columns last
    format  a key of FORMATS
    reason  why this format: "q4_k_m: rule 15, attn_v", "override: …", "kept f32: norm", "fallback: …"
    wanted  the format that its columns ruled out, "" where it got what was chosen
    nbytes  bytes of the encoded tensor, without padding
    """

    name: str
    shape: tuple[int, ...]
    source_dtype: str
    format: str
    reason: str
    wanted: str
    nbytes: int

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight, scales included."""
        return self.nbytes * 8 / max(self.weights, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything the user asked for that shapes the bytes.

    mixture     version of the table of mixture rules
    importance  where the importance came from, "" for none
    """

    format: str
    mixture: str
    tensor_formats: tuple[str, ...] = ()
    output_format: str = ""
    embedding_format: str = ""
    search: str = "best"
    importance: str = ""
    fallback: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe, applied to one model; `tensors` stand in the order of the file."""

    model: str
    architecture: str
    recipe: Recipe
    tensors: tuple[PlannedTensor, ...]
    schema: str = PLAN_SCHEMA

    @property
    def weights(self) -> int:
        """Parameters of the model."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all encoded tensors, without headers and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of storage per weight over the whole model."""
        return self.nbytes * 8 / max(self.weights, 1)

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """The tensors whose columns ruled out the chosen format."""
        return tuple(tensor for tensor in self.tensors if tensor.wanted)

    def to_json(self) -> str:
        """Return the plan as a JSON document (which is YAML too)."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, place: str = "plan") -> Plan:
        """Read what `to_json` wrote; FormatError names `place` and what is wrong."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{place}: not a JSON document ({error})") from error
        return cls.from_object(document, place=place)

    @classmethod
    def from_object(cls, document: object, *, place: str = "plan") -> Plan:
        """Build the plan from parsed JSON; FormatError where a key is missing, unknown or of the wrong type."""
        fields = from_json_object(Plan, document, place)
        if fields["schema"] != PLAN_SCHEMA:
            raise FormatError(f"{place}: schema {fields['schema']!r}, this version reads {PLAN_SCHEMA!r}")
        recipe = from_json_object(Recipe, fields["recipe"], f"{place}: recipe")
        tensors = []
        for index, row in enumerate(_list(fields["tensors"], f"{place}: tensors")):
            values = from_json_object(PlannedTensor, row, f"{place}: tensors[{index}]")
            tensors.append(PlannedTensor(**{**values, "shape": tuple(values["shape"])}))
        recipe["tensor_formats"] = tuple(recipe["tensor_formats"])
        return cls(**{**fields, "recipe": Recipe(**recipe), "tensors": tuple(tensors)})

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a saved plan."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not a text file ({error})") from error
        return cls.from_json(text, place=str(path))


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "float | None": (float, int, type(None)),
    "int | None": (int, type(None)),
}


def from_json_object(row: type[Row], document: object, place: str) -> dict[str, Any]:
    """Return the fields of dataclass `row` from parsed JSON: exactly its keys, scalars of the right type."""
    if not isinstance(document, dict):
        raise FormatError(f"{place}: an object is needed, got {type(document).__name__}")
    fields = {field.name: str(field.type) for field in dataclasses.fields(row)}  # type: ignore[arg-type]  # a dataclass
    if set(document) != set(fields):
        missing, unknown = sorted(set(fields) - set(document)), sorted(set(document) - set(fields))
        raise FormatError(f"{place}: missing keys {missing}, unknown keys {unknown}")
    for name, kind in fields.items():
        value = document[name]
        if kind.startswith("tuple["):
            item = kind.removeprefix("tuple[").split(",")[0]
            wrong = [part for part in _list(value, f"{place}: {name}") if not _fits(part, item)]
            value = wrong[0] if wrong else value
            kind = item if wrong else kind  # noqa: PLW2901 (the item is what is wrong)
        if not _fits(value, kind):
            raise FormatError(f"{place}: {name} must be {kind}, got {value!r:.60}")
    return dict(document)


def _fits(value: object, kind: str) -> bool:
    allowed = _JSON_TYPES.get(kind)
    return allowed is None or (isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool)))


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{place}: a list is needed, got {type(value).__name__}")
    return value
