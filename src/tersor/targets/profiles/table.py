"""Every profile by name, and the one that fits a machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

from tersor.core.errors import SchemeError
from tersor.targets.profiles.accelerators import APPLE, GPUS
from tersor.targets.profiles.phones import PHONES
from tersor.targets.profiles.processors import BOARDS, PROCESSORS
from tersor.targets.profiles.profile import Profile

__all__ = ["PROFILES", "matching", "profile"]

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {row.name: row for row in (*PROCESSORS, *APPLE, *BOARDS, *PHONES, *GPUS)}
)
"""Name → profile: classes of processors, Apple, boards, phones, GPUs."""


def profile(name: str) -> Profile:
    """Return a row; SchemeError names near ones."""
    if name not in PROFILES:
        near = get_close_matches(name, PROFILES, 3, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SchemeError(f"no profile {name!r}{hint} (`tersor estimate --list` shows all)")
    return PROFILES[name]


def matching(flags: Iterable[str]) -> Profile | None:
    """Return the class of processors whose instruction sets are all among `flags`, the one with most; None if none is.

    >>> matching(["avx2", "fma", "avx512f", "avx512_vnni"]).name, matching(["sse2"])
    ('x86-avx512-vnni', None)
    """
    there = set(flags)
    fitting = [row for row in PROCESSORS if there.issuperset(row.flags)]
    return max(fitting, key=lambda row: len(row.flags), default=None)
