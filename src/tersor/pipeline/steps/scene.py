"""What holds for every side of a benchmark: the machine, its roofs, what else it was doing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tersor.targets.energy import Meter, open_meter
from tersor.targets.processor import Processor, busy_cores, processor
from tersor.targets.roofs import Roofs, fastest, measure_roofs

__all__ = ["Scene", "highest", "look_around"]


@dataclass(frozen=True, slots=True)
class Scene:
    """The machine and its roofs, as they were at the start.

    load   average of the last minute; None where nobody counts
    meter  of energy, or in words why there is none
    """

    machine: Processor
    roofs: Roofs
    load: float | None
    meter: Meter | str

    def facts(self) -> dict[str, str | int | float]:
        """Return them for the Benchmark; rates in decimal units."""
        found: dict[str, str | int | float] = {
            "processor": self.machine.name,
            "cores": self.machine.cores,
            "threads": self.roofs.threads,
            "instructions": " ".join(self.machine.flags),
            "read_bytes_per_s": self.roofs.read_bytes_per_s,
            "float32_operations_per_s": self.roofs.float_flops,
            "roofs_measured_by": self.roofs.method,
        }
        if self.roofs.int8_ops is not None:
            found["int8_operations_per_s"] = self.roofs.int8_ops
        if self.machine.cache_bytes is not None:
            found["last_level_cache_bytes"] = self.machine.cache_bytes
        if self.load is not None:
            found["load_average"] = self.load
        return found


def look_around(threads: int) -> Scene:
    """Measure the roofs with `threads` threads, after asking how busy the machine is; 0: every physical core."""
    machine, load, meter = processor(), busy_cores(), open_meter()
    return Scene(machine, measure_roofs(threads or machine.physical), load, meter)


def highest(one: Roofs, other: Roofs) -> Roofs:
    """Return the better of two measurements, figure by figure: what disturbs the machine only ever lowers them."""
    return replace(
        one,
        read_bytes_per_s=max(one.read_bytes_per_s, other.read_bytes_per_s),
        float_flops=max(one.float_flops, other.float_flops),
        byte_ops=fastest(one.byte_ops, other.byte_ops),
        matrix_ops=fastest(one.matrix_ops, other.matrix_ops),
        seconds=one.seconds + other.seconds,
    )
