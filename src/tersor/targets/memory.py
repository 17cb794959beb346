"""Memory of another process and of the machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tersor.targets.groups import groups, text_of

__all__ = ["Footprint", "available_bytes", "footprint", "give_back", "machine_bytes"]

PROCESSES = Path("/proc")


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


def available_bytes(processes: Path = PROCESSES) -> int | None:
    """Return what can be taken without swapping; None where the system does not tell."""
    found = _kilobytes(processes / "meminfo").get("MemAvailable")
    if found is not None:
        return found
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return None


def machine_bytes(system: Path = Path("/")) -> int | None:
    """Return the memory that this process may ever take: the machine's, or what its control groups grant of it.

    None where the system does not tell.
    """
    found = [_kilobytes(system / "proc/meminfo").get("MemTotal")]
    if found == [None]:
        with suppress(AttributeError, ValueError, OSError):
            found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, is_second in groups("memory", system):
        said = text_of(folder / ("memory.max" if is_second else "memory.limit_in_bytes")).strip()
        found.append(int(said) if said.isdecimal() else None)  # "max": no limit
    return min((one for one in found if one), default=None)


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
