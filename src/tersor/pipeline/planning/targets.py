"""What a plan is made for: the formats that the target's engine runs, from which each tensor takes one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from tersor.containers.mixtures import tensor_format
from tersor.core.errors import SchemeError
from tersor.formats import get
from tersor.pipeline.planning.plan_file import GGUF
from tersor.targets.profiles.table import PROFILES, profile

__all__ = ["INTEGERS", "TARGETS", "Target", "target_named"]


@dataclass(frozen=True, slots=True)
class Target:
    """A row.

    formats           candidates, by rising bits: llama.cpp has kernels for all of them there
    why               what was left out, and why
    memory_bytes      of a machine by name; None: nobody tells, or it is a kind of machine
    read_bytes_per_s  from it, likewise; of "cpu" it is measured
    """

    name: str
    formats: tuple[str, ...]
    why: str
    memory_bytes: int | None = None
    read_bytes_per_s: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether it stands for the machine at hand, which can be measured."""
        return self.name == HERE

    @property
    def allowed(self) -> frozenset[str] | None:
        """Formats that a plan may take of an analysis, which may know others; None: all that were analysed."""
        return None if self.is_here or not self.formats else frozenset(self.formats)


HERE = "cpu"
ENGINES = {GGUF: "llama.cpp"}
ON_GPUS = "vllm"
"""Whose fast formats a plan for a machine by name takes: by container, others vLLM's."""
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

    name  "cpu", "gpu", "mobile", or a machine of `targets.profiles`
    SchemeError for an unknown target, a format that a GGUF cannot hold, and a machine of which nobody tells what runs
    fast on it.
    """
    found = TARGETS.get(name) or _machine(name)
    if formats:
        held = [tensor_format(one) if container == GGUF else get(one).name for one in formats]
        return replace(found, formats=tuple(dict.fromkeys(held)), why="as asked for")
    if name in TARGETS:
        is_gguf = container == GGUF
        return found if is_gguf else Target(name, INTEGERS, "groups of integers that engines have kernels for")
    engine = ENGINES.get(container, ON_GPUS)
    support = profile(name).engines.get(engine)
    if support is None:
        raise SchemeError(f"nobody tells what {engine} runs fast on {name}: name formats with --formats")
    held = [kind for kind in support.formats if _fits(kind, container)]
    if not held:
        raise SchemeError(f"{engine} runs no format that {container} mixes fast on {name}: name some with --formats")
    return replace(found, formats=tuple(sorted(held, key=lambda kind: get(kind).bits_per_weight)), why=support.source)


def _machine(name: str) -> Target:
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, 3, 0.4)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise SchemeError(f"no target {name!r}; there are {', '.join(TARGETS)}, and machines by name{hint}")
    row = profile(name)
    memory = None if row.memory_bytes is None else int(row.memory_bytes.value)
    return Target(name, (), "", memory, None if row.read_bytes_per_s is None else row.read_bytes_per_s.value)


def _fits(kind: str, container: str) -> bool:
    return container == GGUF or kind.startswith("int")
