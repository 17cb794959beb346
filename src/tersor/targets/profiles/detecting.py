"""Which profile the machine at hand is, or is most like."""

from __future__ import annotations

from pathlib import Path

from tersor.targets.graphics import Graphics
from tersor.targets.processor import SYSTEM, Processor
from tersor.targets.profiles.accelerators import APPLE, GPUS
from tersor.targets.profiles.processors import BOARDS
from tersor.targets.profiles.profile import Profile
from tersor.targets.profiles.table import matching

__all__ = ["profile_of", "profile_of_graphics"]

NEAR = 0.1
"""Memory of a GPU may differ by this share from the profile's: drivers and error correction keep some."""


def profile_of(processor: Processor, system: Path = SYSTEM) -> Profile | None:
    """Return the board or chip by its name, else the class of processors by its instructions; None if nothing fits."""
    try:
        said = (system / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = ""
    for row in (*BOARDS, *APPLE):
        name = row.title.partition(" (")[0].partition(",")[0]
        if said.startswith(name) or processor.name == name:
            return row
    return matching(processor.flags)


def profile_of_graphics(found: Graphics) -> Profile | None:
    """Return the profile with its compute capability and about its memory; of several, that with more of its name."""
    words = set(found.name.replace("-", " ").split())
    fitting = [
        row
        for row in GPUS
        if row.capability == found.capability
        and row.memory_bytes is not None
        and abs(found.memory_bytes / row.memory_bytes.value - 1) <= NEAR
    ]
    return max(fitting, key=lambda row: len(words & set(row.title.replace(",", "").split())), default=None)
