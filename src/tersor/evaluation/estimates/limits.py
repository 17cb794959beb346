"""What a machine offers, from its profile or from what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersor.targets.profiles.profile import DTYPES, Figure, Profile
from tersor.targets.roofs import Roofs

__all__ = ["Machine", "machine_here", "machine_of"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as an estimate sees it; None for what nobody says.

    kind   of its profile
    peaks  dtype → operations a second
    packs  instruction sets for which llama.cpp packs weights anew there; none where it does not
    """

    name: str
    kind: str
    memory: Figure | None
    read: Figure | None
    peaks: Mapping[str, Figure]
    notes: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()

    def times(self, count: int) -> Machine:
        """Return `count` such machines that share every layer among them, whose talk costs nothing."""
        if count == 1:
            return self

        def more(figure: Figure | None) -> Figure | None:
            return None if figure is None else Figure(figure.value * count, f"{count} × {figure.source}", figure.sense)

        peaks = {dtype: Figure(rate.value * count, f"{count} × {rate.source}") for dtype, rate in self.peaks.items()}
        notes = (*self.notes, "what the machines tell each other costs time that is not counted")
        name = f"{count} × {self.name}"
        return Machine(name, self.kind, more(self.memory), more(self.read), peaks, notes, self.packs)


def machine_of(profile: Profile) -> Machine:
    """Return what a profile offers."""
    peaks = {dtype: rate for dtype in DTYPES if (rate := profile.peak(dtype)) is not None}
    llama = profile.engines.get("llama.cpp")
    packs = profile.flags if llama is not None and llama.packs else ()
    read = profile.read_bytes_per_s
    return Machine(profile.title, profile.kind, profile.memory_bytes, read, peaks, profile.notes, packs)


def machine_here(name: str, roofs: Roofs, memory_bytes: int | None, flags: tuple[str, ...] = ()) -> Machine:
    """Return what this machine offers: roofs that were measured, memory and instruction sets that are there."""
    how = f"measured here with {roofs.threads} threads, {roofs.method}"
    peaks = {"float32": Figure(roofs.float_flops, how)}
    if roofs.int8_ops is not None:
        peaks["int8"] = Figure(roofs.int8_ops, how)
    memory = None if memory_bytes is None else Figure(memory_bytes, "of this machine, as its system tells")
    return Machine(name, "cpu", memory, Figure(roofs.read_bytes_per_s, how), peaks, packs=flags)
