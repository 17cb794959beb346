"""The engines that run nets, one row each, and a net loaded in one of them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import MissingError, SchemeError
from tersor.engines.child import Child, InChild
from tersor.targets.processor import places

__all__ = ["NET_ENGINES", "Clock", "Loaded", "NetEngine", "Settings", "Way", "installed", "ways"]

Settings: TypeAlias = Mapping[str, bool]
Clock: TypeAlias = Literal["wall", "processor"]
"""What time is told by: the wall, or the processor time of all threads of an engine. Other work does not lengthen the
latter, which tells the same as the former for one thread that never waits."""
PINNED = "pinning"
_WORKER = "tersor.evaluation.nets.running.worker"


@dataclass(frozen=True, slots=True)
class NetEngine:
    """A row.

    package   that has to be installed; `install` is how
    settings  the ways in which it can be run, the usual one first
    several   more ways, which differ for several threads alone
    programs  that it calls, such as a compiler
    """

    package: str
    install: str
    settings: tuple[Settings, ...]
    several: tuple[Settings, ...] = ()
    programs: tuple[str, ...] = ()

    @property
    def every(self) -> tuple[Settings, ...]:
        """All ways in which it is ever run."""
        return (*self.settings, *self.several)


NET_ENGINES: Mapping[str, NetEngine] = MappingProxyType(
    {
        "onnxruntime": NetEngine(
            "onnxruntime",
            "pip install 'tersor[onnx]'",
            ({"layout": True, "spin": True}, {"layout": False, "spin": True}),
            ({"layout": True, "spin": False}, {"layout": True, "spin": True, PINNED: True}),
        ),
        "openvino": NetEngine("openvino", "pip install openvino", ({"pinning": True}, {"pinning": False})),
        "torch": NetEngine("torch", "pip install 'tersor[torch]'", ({"compile": True},), programs=("g++",)),
    }
)
"""Name → row. layout: weights and images in the order that the processor likes (NCHWc); spin: idle threads wait
awake; pinning: each thread stays on a core; compile: by inductor, with constants folded in."""


def installed(name: str) -> str:
    """Return why an engine cannot be used here, "" where it can; SchemeError for one that we do not know."""
    row = _row(name)
    if importlib.util.find_spec(row.package) is None:
        return f"not installed: {row.install}"
    absent = [program for program in row.programs if shutil.which(program) is None]
    return f"needs {absent[0]}, which is not on the path" if absent else ""


def _row(name: str) -> NetEngine:
    if name not in NET_ENGINES:
        raise SchemeError(f"no engine for nets is called {name!r}; there are {', '.join(NET_ENGINES)}")
    return NET_ENGINES[name]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a net: an engine, its threads, its settings."""

    engine: str
    threads: int
    settings: Settings

    def __str__(self) -> str:
        said = [name if value else f"no {name}" for name, value in self.settings.items()]
        return f"{self.engine}, {self.threads} threads{''.join(f', {word}' for word in said)}"


class Loaded(InChild):
    """A net in an engine, in a child process.

    way      how it is run
    batch    size of the first axis of inputs where it is free; `length` that of other free axes
    profile  folder for what `profile` needs; without one it is not counted

    Raises EngineError where the engine refuses the net, MissingError where it is not installed.
    """

    def __init__(
        self,
        path: Path,
        way: Way,
        *,
        batch: int = 1,
        length: int = 128,
        timeout_s: float = 600,
        profile: Path | None = None,
    ) -> None:
        reason = installed(way.engine)
        if reason:
            raise MissingError(f"{way.engine}: {reason}")
        options: dict[str, int | str] = {"threads": way.threads, "batch": batch, "length": length, "seed": 0}
        options |= way.settings
        if profile is not None:
            options["profile"] = str(profile)
        self.way = way
        self._child = Child(
            _WORKER,
            [way.engine, str(path.absolute()), json.dumps(options)],
            subject=path.name,
            engine=way.engine,
            environment={"OMP_NUM_THREADS": str(way.threads), "CUDA_VISIBLE_DEVICES": ""},
            timeout_s=timeout_s,
            packages=True,
        )
        greeting = self._child.greeting
        self.load_s, self.version = float(greeting["load_s"]), str(greeting["version"])
        self.inputs: dict[str, list[int]] = dict(greeting["inputs"])
        self._values = int(greeting["values"])

    def seconds(self, repeats: int, clock: Clock = "wall") -> list[float]:
        """Run so many times on the same inputs, and return what each took."""
        return [took / 1e9 for took in self._child.call("time", repeats=repeats, clock=clock)["ns"]]

    def output(self) -> Float32:
        """Return all outputs for the inputs, which are the same in every engine, flat and one after another."""
        found = np.empty(self._values, np.float32)
        self._child.call("show", into=found)
        return found

    def profile(self, repeats: int) -> dict[str, Any]:
        """Run so many times, and return what the engine counted: `path` of its file, or `rows` (counters.py)."""
        return self._child.call("profile", repeats=repeats)


def ways(engines: Sequence[str], threads: Sequence[int], *, every_setting: bool) -> list[Way]:
    """Return the ways to run a net in these engines: the usual settings of each, or every one; SchemeError.

    Threads are pinned to cores where this process may use as many cores as there are threads.
    """
    found = []
    for name in engines:
        row = _row(name)
        for chosen in row.settings if every_setting else row.settings[:1]:
            found += [Way(name, count, chosen) for count in threads]
        for chosen in row.several if every_setting else ():
            most = [count for count in threads if count > 1 and (not chosen.get(PINNED) or places(count) is not None)]
            found += [Way(name, count, chosen) for count in most]
    return found
