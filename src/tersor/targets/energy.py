"""Energy that the processor packages take, where Linux lets us read their counters (RAPL).

Source: Documentation/power/powercap/powercap.rst of Linux. The counters hold everything on the package, other programs
included, and wrap around.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "open_meter"]

COUNTERS = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Meter:
    """The counters of all packages: file of microjoules, and the value at which it wraps."""

    counters: tuple[tuple[Path, int], ...]

    def read(self) -> tuple[int, ...]:
        """Return the counters now, in microjoules; OSError where the right to read was lost."""
        return tuple(int(path.read_text()) for path, _ in self.counters)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Return the energy between two readings less than one wrap apart."""
        pairs = zip(before, after, self.counters, strict=True)
        return sum((end - start) % wrap for start, end, (_, wrap) in pairs) / 1e6


def open_meter(folder: Path = COUNTERS) -> Meter | str:
    """Return a meter of the processor packages, or in words why there is none."""
    if not folder.is_dir():
        return "this machine exposes no energy counters"
    found = []
    for zone in sorted(folder.glob("*rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            int((zone / "energy_uj").read_text())
            found.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()) + 1))
        except PermissionError:
            return "the energy counters exist, but reading them takes root (energy_uj under /sys/class/powercap)"
        except (OSError, ValueError):
            continue
    return Meter(tuple(found)) if found else "this machine exposes no energy counters"
