"""The processor as this process may use it: name, cores, instruction sets, last cache."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from tersor.targets.groups import groups, text_of

__all__ = ["Processor", "busy_cores", "is_busy", "places", "processor"]

SYSTEM = Path("/")
BUSY = 0.5
_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
"""Instruction sets that matter to quantized models, as Linux spells them."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What is known; nothing here names the host.

    cores        that this process may use: affinity and the quota of its control group, rounded up
    physical     of these, how many are cores of their own rather than a second thread of one
    flags        instruction sets that matter to quantized models
    cache_bytes  of the last-level cache; None where the system does not tell
    """

    name: str
    cores: int
    physical: int
    flags: tuple[str, ...]
    cache_bytes: int | None


def processor(system: Path = SYSTEM) -> Processor:
    """Read what the system under the root folder `system` says; what it does not say is guessed from Python."""
    fields = _cpuinfo(system)
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = _quota(system)
    cores = len(allowed) if quota is None else max(1, min(len(allowed), -int(-quota // 1)))
    said = f" {fields.get('flags') or fields.get('Features') or ''} "
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    flags = tuple(flag for flag in _FLAGS if f" {flag} " in said)
    return Processor(name, cores, min(cores, _physical(system, allowed)), flags, _last_cache(system))


def is_busy(load: float | None) -> TypeGuard[float]:
    """Tell of a load average whether rates that were measured with it are those of a busy machine."""
    return load is not None and load > BUSY


def busy_cores(system: Path = SYSTEM) -> float | None:
    """Cores' worth of work that waited or ran in the last minute (the load average); None where nobody counts."""
    if system == SYSTEM and hasattr(os, "getloadavg"):
        return os.getloadavg()[0]
    try:
        return float(text_of(system / "proc/loadavg").split()[0])
    except (IndexError, ValueError):
        return None


def places(count: int, system: Path = SYSTEM) -> tuple[int, ...] | None:
    """Return numbers of `count` processors to keep threads on, one of each core before a second one of any.

    None where this process may not use so many, or where the system does not let it say.
    """
    if not hasattr(os, "sched_setaffinity") or not 0 < count <= processor(system).cores:
        return None
    seen: dict[str, int] = {}
    ranked = []
    for number in sorted(os.sched_getaffinity(0)):
        core = _siblings(system, number)
        ranked.append((seen.get(core, 0), number))
        seen[core] = seen.get(core, 0) + 1
    return tuple(number for _, number in sorted(ranked)[:count])


def _cpuinfo(system: Path) -> dict[str, str]:
    """The lines of the first processor."""
    lines = text_of(system / "proc/cpuinfo").partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _quota(system: Path) -> float | None:
    """Cores that the control groups of this process grant, the smallest on the way up; None without a limit."""
    found = [_limit(folder, is_second) for folder, is_second in groups("cpu", system)]
    return min((limit for limit in found if limit is not None), default=None)


def _limit(folder: Path, is_second: bool) -> float | None:
    if is_second:
        words = text_of(folder / "cpu.max").split()
    else:
        words = [text_of(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    try:
        quota, period = float(words[0]), float(words[1])
    except (IndexError, ValueError):  # "max": no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def _physical(system: Path, allowed: list[int]) -> int:
    """Distinct cores among the processors `allowed`."""
    return len({_siblings(system, number) for number in allowed})


def _siblings(system: Path, number: int) -> str:
    """What names the core of a processor: all processors of that core, or the processor alone where nobody says."""
    text = text_of(system / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").strip()
    return text or str(number)


def _last_cache(system: Path) -> int | None:
    levels = {}
    for folder in sorted((system / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size, level, kind = (text_of(folder / name).strip() for name in ("size", "level", "type"))
        if kind != "Instruction" and level.isdecimal() and size[:-1].isdecimal():
            levels[int(level)] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 0)
    return levels[max(levels)] or None if levels else None
