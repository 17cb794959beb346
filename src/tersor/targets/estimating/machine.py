"""What an estimate has to know of a machine: peaks and bandwidth, measured here or told by a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tersor.core.errors import SchemeError
from tersor.targets.processor import processor
from tersor.targets.profiles.profile import Profile
from tersor.targets.roofs import Roofs

__all__ = ["Machine", "of_profile", "of_roofs"]


INTEGERS_A_FLOAT = 8
"""Operations of SMMLA in the time of one of FMLA, on Arm's cores of 2021 and later."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, or a class of them.

    peaks              arithmetic ("float32", "int8", …) → operations a second, two a multiply-add, of all threads
    read_bytes_per_s   from memory; None where nobody tells
    is_measured        whether the figures were measured on it: documents tell what no program reaches
    cache_bytes        of the last cache; None where nobody tells, weights are then read from memory
    vectors            operations a second in float32 that caches keep up with; None: the peak in float32
    power_w            that it takes for long at full work; None where nobody tells
    sustained_share    of its first speed that is left when it is warm, with its source; None where nobody tells
    """

    name: str
    peaks: Mapping[str, float]
    read_bytes_per_s: float | None
    is_measured: bool
    threads: int = 1
    cache_bytes: int | None = None
    vectors: float | None = None
    power_w: float | None = None
    sustained_share: float | None = None
    sources: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        known = [*self.peaks.values(), self.read_bytes_per_s, self.power_w]
        if any(value is not None and not value > 0 for value in known):
            raise SchemeError(f"{self.name}: peaks, bandwidth and power are above 0")
        if self.sustained_share is not None and not 0 < self.sustained_share <= 1:
            raise SchemeError(f"{self.name}: the speed that is left when warm is a share, got {self.sustained_share}")
        object.__setattr__(self, "peaks", MappingProxyType(dict(self.peaks)))

    def peak(self, arithmetic: str) -> float:
        """Return operations a second; SchemeError where nobody tells."""
        if arithmetic not in self.peaks:
            raise SchemeError(f"{self.name}: nobody tells its peak in {arithmetic}")
        return self.peaks[arithmetic]


def of_roofs(roofs: Roofs, name: str = "this machine") -> Machine:
    """Return the machine that was measured. A matrix unit is left out: the rates of int8 were fitted without one."""
    peaks = {"float32": roofs.float_flops, **({} if roofs.byte_ops is None else {"int8": roofs.byte_ops})}
    told = (f"measured with {roofs.threads} threads, {roofs.method}",)
    cache = processor().cache_bytes
    return Machine(name, peaks, roofs.read_bytes_per_s, True, roofs.threads, cache_bytes=cache, sources=told)


def of_profile(profile: Profile) -> Machine:
    """Return a class of machines as its documents tell it, all its cores that they tell of together."""
    found = {name: profile.peak(name) for name in ("float32", "float16", "int8")}
    peaks = {name: figure.value for name, figure in found.items() if figure is not None}
    read, power = profile.read_bytes_per_s, profile.power_w
    told = [f"{name}: {figure.source}" for name, figure in found.items() if figure is not None]
    told += [] if read is None else [f"memory: {read.source}"]
    vectors = None
    if "float32" not in peaks and "int8" in peaks:
        vectors = peaks["int8"] / INTEGERS_A_FLOAT
        told.append(f"its caches are as fast as vectors of a {INTEGERS_A_FLOAT}th of its int8 peak would need: assumed")
    counted = sum(round(row.count.value) for row in profile.cores if row.count is not None and row.per_cycle)
    return Machine(
        profile.name,
        peaks,
        None if read is None else read.value,
        False,
        threads=max(counted, 1),
        vectors=vectors,
        power_w=None if power is None else power.value,
        sources=tuple(told),
    )
