"""Activations that an engine wrote to a file while it computed, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError

__all__ = ["Activations"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the rows of one activation lie: (byte offset, rows) of each run, and the shape of a row."""

    runs: tuple[tuple[int, int], ...]
    columns: int
    groups: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Rows of the activations of one run, in `path`, which is the caller's to delete.

    Names are llama.cpp's own ("l_out-3", "result_norm"), or "product WEIGHT" for what multiplying with a weight gave,
    "lookup WEIGHT" for rows taken from it.
    """

    path: Path
    places: Mapping[str, _Place]
    inputs: Mapping[str, str]
    choices: Mapping[str, str]

    @classmethod
    def from_answer(cls, path: Path, answer: Mapping[str, Any]) -> Self:
        """Check what the child says about the file against the size of the file; EngineError where it cannot be."""
        size = path.stat().st_size
        places = {}
        for name, entry in answer["captures"].items():
            runs = tuple((int(offset), int(rows)) for offset, rows in entry["segments"])
            columns, groups = int(entry["columns"]), int(entry["groups"])
            if (
                columns < 1
                or groups < 1
                or any(min(offset, rows) < 0 or offset + 4 * rows * columns > size for offset, rows in runs)
            ):
                raise EngineError(f"llama.cpp wrote {size} bytes of activations, which do not hold {name!r}")
            places[name] = _Place(runs, columns, groups)
        return cls(path, places, dict(answer["input_of"]), dict(answer["choice_of"]))

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def read(self, name: str) -> Float32:
        """Return the rows of one activation, [rows, columns]; EngineError where the run had none of this name."""
        if name not in self.places:
            raise EngineError(f"the run had no activation {name!r}")
        place = self.places[name]
        parts = [
            np.fromfile(self.path, np.float32, rows * place.columns, offset=offset).reshape(rows, place.columns)
            for offset, rows in place.runs
        ]
        return np.concatenate(parts) if parts else np.empty((0, place.columns), np.float32)

    def input_of(self, weight: str, expert: int = 0) -> Float32 | None:
        """Return the rows, [rows, columns], that were multiplied with this weight; None where they were not seen.

        expert  of a stack of experts: only the rows that were sent to this one
        """
        name = self.inputs.get(weight)
        if name is None or name not in self.places:
            return None
        rows, place = self.read(name), self.places[name]
        if weight not in self.choices:
            return rows
        chosen = self.read(self.choices[weight]).astype(np.int64)  # [tokens, experts taken]
        grouped = rows.reshape(len(rows), place.groups, -1)
        token, slot = np.nonzero(chosen == expert)
        return np.ascontiguousarray(grouped[token, slot if place.groups > 1 else 0])
