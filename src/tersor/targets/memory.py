"""Memory of another process and of the machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tersor.targets.groups import groups, text_of

__all__ = ["Footprint", "available_bytes", "footprint", "give_back", "machine_bytes"]

PROCESSES = Path("/proc")
SYSTEM = Path("/")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one process; None for what the system does not tell.

    resident       in memory now, shared pages counted whole
    peak           the largest `resident` since it began
    proportional   in memory now, shared pages divided by those who share them
    """

    resident: int
    peak: int | None
    proportional: int | None


def footprint(pid: int, processes: Path = PROCESSES) -> Footprint | None:
    """Return what the process takes; None if it is gone or the system does not tell."""
    status = _kilobytes(processes / str(pid) / "status")
    if "VmRSS" in status:
        rollup = _kilobytes(processes / str(pid) / "smaps_rollup")
        return Footprint(status["VmRSS"], status.get("VmHWM"), rollup.get("Pss"))
    resident = None if processes.is_dir() else _from_ps(pid)  # macOS has no /proc
    return None if resident is None else Footprint(resident, None, None)


def available_bytes(system: Path = SYSTEM) -> int | None:
    """Return what this process can take without swapping, and within what its control groups have left.

    None where the system does not tell.
    """
    found = [_of_machine(system, "MemAvailable", "SC_AVPHYS_PAGES")]
    found += [max(0, limit - _taken(folder, is_second=is_second)) for folder, is_second, limit in _granted(system)]
    return min((one for one in found if one is not None), default=None)


def machine_bytes(system: Path = SYSTEM) -> int | None:
    """Return the memory that this process may ever take: the machine's, or what its control groups grant of it.

    None where the system does not tell.
    """
    found = [_of_machine(system, "MemTotal", "SC_PHYS_PAGES")]
    found += [limit for _, _, limit in _granted(system)]
    return min((one for one in found if one), default=None)


def _of_machine(system: Path, entry: str, pages: str) -> int | None:
    """Return what the system tells of memory: an entry of Linux's, else a number of pages."""
    found = _kilobytes(system / "proc/meminfo").get(entry)
    if found is None:
        with suppress(AttributeError, ValueError, OSError):
            found = os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
    return found


def _granted(system: Path) -> Iterator[tuple[Path, bool, int]]:
    """Yield the control groups that limit memory: folder, whether it is of version 2, and the bytes that it grants."""
    for folder, is_second in groups("memory", system):
        said = text_of(folder / ("memory.max" if is_second else "memory.limit_in_bytes")).strip()
        if said.isdecimal():  # "max": no limit
            yield folder, is_second, int(said)


def _taken(folder: Path, *, is_second: bool) -> int:
    """Return the bytes that a control group holds, but for pages of files that nobody uses: these are dropped first."""
    said = text_of(folder / ("memory.current" if is_second else "memory.usage_in_bytes")).strip()
    key = "inactive_file" if is_second else "total_inactive_file"
    rows = (line.split() for line in text_of(folder / "memory.stat").splitlines())
    idle = next((int(row[1]) for row in rows if len(row) == 2 and row[0] == key and row[1].isdecimal()), 0)
    return max(0, int(said) - idle) if said.isdecimal() else 0


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    Left to itself it keeps what lies between two things that live on, and a run over many blocks grows with each.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(path: Path) -> dict[str, int]:
    """The lines `name: number kB` of a file, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def _from_ps(pid: int) -> int | None:
    program = shutil.which("ps")
    if program is None:
        return None
    done = subprocess.run([program, "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(done.stdout) * 1024 if done.stdout.strip().isdecimal() else None
