"""The plan: what is to become of every tensor, decided before a single weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import FormatError
from tersor.core.records import from_json_text, plain, read_record, read_text, to_json_text

__all__ = ["PLAN_SCHEMA", "Plan", "PlannedTensor", "Recipe"]

PLAN_SCHEMA = "tersor.plan/2"
FIRST_SCHEMA = "tersor.plan/1"

MAX_DIMENSIONS = 8
MAX_WEIGHTS = 2**63


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
    method      what chose the grid points: a key of METHODS
    calibration the text that it knew, "" for none: name, sequences × tokens, seed, SHA-256
    """

    format: str
    mixture: str
    tensor_formats: tuple[str, ...] = ()
    output_format: str = ""
    embedding_format: str = ""
    search: str = "best"
    importance: str = ""
    fallback: bool = True
    method: str = "rtn"
    calibration: str = ""


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
        return to_json_text(plain(self))

    @classmethod
    def from_json(cls, text: str, *, place: str = "plan") -> Plan:
        """Read what `to_json` wrote; FormatError names `place` and what is wrong."""
        return cls.from_object(from_json_text(text, place), place=place)

    @classmethod
    def from_object(cls, document: object, *, place: str = "plan") -> Plan:
        """Build the plan from parsed JSON of this version or an earlier one; FormatError for wrong or unknown keys."""
        schema = document.get("schema", PLAN_SCHEMA) if isinstance(document, dict) else PLAN_SCHEMA
        if isinstance(document, dict) and schema == FIRST_SCHEMA and isinstance(document.get("recipe"), dict):
            recipe = {"method": "rtn", "calibration": "", **document["recipe"]}
            document = {**document, "recipe": recipe, "schema": PLAN_SCHEMA}
        elif schema != PLAN_SCHEMA:
            raise FormatError(f"{place}: schema {schema!r:.60}, this version reads {PLAN_SCHEMA!r}")
        plan = read_record(Plan, document, place)
        for index, tensor in enumerate(plan.tensors):
            shape = tensor.shape
            if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or math.prod(shape) >= MAX_WEIGHTS:
                raise FormatError(f"{place}: tensors[{index}]: {shape!s:.60} is no shape of a tensor")
            if tensor.nbytes < 0:
                raise FormatError(f"{place}: tensors[{index}]: {tensor.nbytes} is no count of bytes")
        return plan

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a saved plan."""
        return cls.from_json(read_text(path), place=str(path))
