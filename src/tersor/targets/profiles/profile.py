"""What is known of a class of machines; every figure carries the document that says it, and what nobody says is absent.

Units: bytes, seconds, watts, hertz; operations are two a multiply-add. Peaks are dense: without sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError

__all__ = ["DTYPES", "Cores", "Figure", "FigureSense", "Kind", "Profile", "Support"]

Kind: TypeAlias = Literal["cpu", "gpu", "phone", "board"]
FigureSense: TypeAlias = Literal["exact", "about", "at most"]
DTYPES = ("float32", "float16", "bfloat16", "float8", "float4", "int8", "int4")
"""What peaks are told for."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and its source: a document by name, or an address.

    sense  "about" for the label of a memory, of which the system sees a little more or less; "at most" for what some
           machines of the class have less of
    """

    value: float
    source: str
    sense: FigureSense = "exact"

    def __post_init__(self) -> None:
        if not self.value > 0 or not self.source:
            raise SchemeError(f"a figure is above 0 and has a source, got {self.value} from {self.source!r}")


@dataclass(frozen=True, slots=True)
class Cores:
    """Equal cores of a processor.

    count      how many; None for a class of processors of any size
    name       such as "Cortex-X4"
    clock_hz   at most; None where it differs from machine to machine
    per_cycle  dtype → operations that one core does in a cycle
    """

    name: str
    count: Figure | None = None
    clock_hz: Figure | None = None
    per_cycle: Mapping[str, Figure] = field(default_factory=dict)

    def peak(self, dtype: str) -> float | None:
        """Return operations a second of all of them together; None where a factor is not known."""
        rate = self.per_cycle.get(dtype)
        if rate is None or self.count is None or self.clock_hz is None:
            return None
        return rate.value * self.count.value * self.clock_hz.value


@dataclass(frozen=True, slots=True)
class Support:
    """What one engine runs fast on such a machine.

    formats  names as `--format` takes them; "int8" is that of nets with rounded activations
    fusions  operators that become one
    source   who says so, or where it was measured
    packs    whether it keeps a second copy of weights, packed for the instructions of the processor
    """

    formats: tuple[str, ...]
    source: str
    fusions: tuple[str, ...] = ()
    packs: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """A class of machines.

    name              as options take it
    title             for people
    memory_bytes      that weights, cache and everything else share
    read_bytes_per_s  from that memory
    peaks             dtype → operations a second of the whole machine, where a document says them
    cores             of its processor, from which other peaks follow
    power_w           that it may take for long: the design power of its maker
    battery_mah       of a phone
    flags             instruction sets that such a machine has, as Linux spells them; most is the best match
    capability        NVIDIA's compute capability
    engines           name → what that runs fast here
    notes             what a reader must know
    """

    name: str
    kind: Kind
    title: str
    memory_bytes: Figure | None = None
    read_bytes_per_s: Figure | None = None
    peaks: Mapping[str, Figure] = field(default_factory=dict)
    cores: tuple[Cores, ...] = ()
    power_w: Figure | None = None
    battery_mah: Figure | None = None
    flags: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    engines: Mapping[str, Support] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = {*self.peaks, *(dtype for row in self.cores for dtype in row.per_cycle)} - set(DTYPES)
        if unknown:
            raise SchemeError(f"{self.name}: peaks are told for {', '.join(DTYPES)}, not {', '.join(sorted(unknown))}")
        object.__setattr__(self, "peaks", MappingProxyType(dict(self.peaks)))
        object.__setattr__(self, "engines", MappingProxyType(dict(self.engines)))

    def peak(self, dtype: str) -> Figure | None:
        """Return operations a second in `dtype`: as a document says, else the sum over the cores that are known."""
        if dtype in self.peaks:
            return self.peaks[dtype]
        known = [(row, row.peak(dtype)) for row in self.cores]
        total = sum(rate for _, rate in known if rate is not None)
        if not total:
            return None
        names = " + ".join(
            f"{row.count.value:.0f} {row.name} × {row.clock_hz.value / 1e9:g} GHz × {row.per_cycle[dtype].value:.0f}"
            for row, rate in known
            if rate is not None and row.count is not None and row.clock_hz is not None
        )
        sources = dict.fromkeys(row.per_cycle[dtype].source for row, rate in known if rate is not None)
        return Figure(total, f"{names} a cycle; {'; '.join(sources)}")
