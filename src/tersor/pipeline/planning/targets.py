"""What a plan is made for: the formats that the target's engine runs, from which each tensor takes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tersor.containers.mixtures import tensor_format
from tersor.core.errors import SchemeError

__all__ = ["TARGETS", "Target", "target_named"]


@dataclass(frozen=True, slots=True)
class Target:
    """A row.

    formats  candidates, by rising bits: llama.cpp has kernels for all of them there
    why      what was left out, and why
    """

    name: str
    formats: tuple[str, ...]
    why: str


ALL = ("tq2_0", "q2_k", "q3_k", "iq4_xs", "q4_0", "q4_k", "q4_1", "q5_0", "q5_k", "q6_k", "q8_0")

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        row.name: row
        for row in (
            Target("cpu", ALL, "every block format of two bits and more that llama.cpp has vector kernels for"),
            Target("gpu", ALL[1:], "no ternary blocks: llama.cpp's CUDA and Metal back ends lack tq2_0"),
            Target(
                "mobile",
                ("q2_k", "q3_k", "iq4_xs", "q4_0", "q4_k", "q5_k", "q6_k", "q8_0"),
                "formats with kernels in Arm's vector instructions; no ternary blocks, none of the older 5-bit ones",
            ),
        )
    }
)
"""By name."""


def target_named(name: str, formats: Sequence[str] = ()) -> Target:
    """Return the row called `name`, with other candidates where `formats` are given.

    SchemeError for an unknown target, or a format that a GGUF cannot hold.
    """
    found = TARGETS.get(name)
    if found is None:
        raise SchemeError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    if not formats:
        return found
    return Target(name, tuple(dict.fromkeys(tensor_format(one) for one in formats)), "as asked for")
