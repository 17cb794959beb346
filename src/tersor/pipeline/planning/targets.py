"""What a plan is made for: the formats that the target's engine runs, from which each tensor takes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tersor.containers.mixtures import tensor_format
from tersor.core.errors import SchemeError
from tersor.formats import get
from tersor.pipeline.planning.plan_file import GGUF

__all__ = ["INTEGERS", "TARGETS", "Target", "target_named"]


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


INTEGERS = ("int4-channel-sym", "int4-g128-asym", "int4-g32-asym", "int8-channel-sym", "int8-g128-sym")
"""Candidates in a checkpoint: engines have kernels for groups of 4 and 8 bits."""


def target_named(name: str, formats: Sequence[str] = (), container: str = GGUF) -> Target:
    """Return the row called `name`, with other candidates where `formats` are given or `container` is no GGUF.

    SchemeError for an unknown target, or a format that a GGUF cannot hold.
    """
    found = TARGETS.get(name)
    if found is None:
        raise SchemeError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    if formats:
        held = [tensor_format(one) if container == GGUF else get(one).name for one in formats]
        return Target(name, tuple(dict.fromkeys(held)), "as asked for")
    return found if container == GGUF else Target(name, INTEGERS, "groups of integers that engines have kernels for")
