"""An artefact of a rung, measured; and that kept beside it, so that a walk that was killed makes nothing twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tersor.core.evaluation import Metric
from tersor.core.records import plain, to_json_text
from tersor.files.atomic import atomic_writer

__all__ = ["Made", "keep_made", "kept_made"]


@dataclass(frozen=True, slots=True)
class Made:
    """An artefact of a rung, measured.

    name   of the file in the folder that it was made in
    loss   against full precision, in the unit of the goal, with its 95 % interval
    speed  × full precision's; None: not measured
    """

    name: str
    nbytes: int
    loss: Metric
    speed: Metric | None = None
    notes: tuple[str, ...] = ()


def keep_made(folder: Path, rung: str, made: Made, seconds: float) -> None:
    """Write down what was measured of the artefact of a rung, and how long that took."""
    with atomic_writer(_place(folder, rung)) as file:
        file.write(to_json_text({"rung": rung, "seconds": seconds, "made": plain(made)}).encode())


def kept_made(folder: Path, rung: str) -> tuple[Made, float] | None:
    """Return what `keep_made` wrote; None where it is not there, not whole, or its artefact is gone."""
    try:
        found = json.loads(_place(folder, rung).read_bytes())
        made = found["made"]
        speed = None if made["speed"] is None else Metric(**made["speed"])
        kept = Made(made["name"], made["nbytes"], Metric(**made["loss"]), speed, tuple(made["notes"]))
        is_whole = found["rung"] == rung and (folder / kept.name).exists()
        return (kept, float(found["seconds"])) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(folder: Path, rung: str) -> Path:
    return folder / f"rung-{hashlib.sha256(rung.encode()).hexdigest()[:12]}.json"
