"""Control groups of Linux: what a container may take of its machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["groups", "text_of"]


def groups(kind: str, system: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each control group of this process, those above it too, and whether it is of version 2.

    kind    "cpu" or "memory"
    system  the root folder
    """
    for line in text_of(system / "proc/self/cgroup").splitlines():
        _, kinds, place = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in place.split("/") if part and part != ".."]
        is_second = not kinds
        if not is_second and kind not in kinds.split(","):
            continue
        top = system / "sys/fs/cgroup" / ("" if is_second else kind)
        for depth in range(len(parts) + 1):
            yield top.joinpath(*parts[:depth]), is_second


def text_of(path: Path) -> str:
    """Return what the system says in a file, "" where it says nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
