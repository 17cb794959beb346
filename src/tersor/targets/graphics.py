"""NVIDIA GPUs of this machine, as its driver's own program tells; nothing is initialised here."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["Graphics", "graphics"]

_QUERY = "name,compute_cap,memory.total"
_LONGEST_S = 10


@dataclass(frozen=True, slots=True)
class Graphics:
    """One GPU: its name as the driver spells it, compute capability, bytes of its memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


def graphics() -> tuple[Graphics, ...]:
    """Ask nvidia-smi; nothing where it is absent, fails, takes too long, or says what we do not understand."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ()
    if done.returncode != 0:
        return ()
    rows = (_row(line) for line in done.stdout.splitlines())
    return tuple(row for row in rows if row is not None)


def _row(line: str) -> Graphics | None:
    """Read `name, major.minor, MiB`."""
    parts = [part.strip() for part in line.rsplit(",", 2)]
    if len(parts) != 3:
        return None
    major, _, minor = parts[1].partition(".")
    if not (major.isdecimal() and minor.isdecimal() and parts[2].isdecimal()):
        return None
    return Graphics(parts[0], (int(major), int(minor)), int(parts[2]) << 20)
