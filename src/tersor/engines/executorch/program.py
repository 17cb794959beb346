"""An ExecuTorch program from an exported module, and its runtime: what phones run, here on this machine."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import EngineError, MissingError, ShapeError
from tersor.engines.child import Child, InChild

__all__ = ["Lowered", "Program", "has_executorch", "lower"]

Array = npt.NDArray[Any]
ENGINE = "ExecuTorch"
LOWERING_S, CALL_S = 900.0, 300.0
LEAST_ROUNDS, MOST_ROUNDS = 20, 2000
QUIET = {"OMP_NUM_THREADS": "1"}  # of torch, which only hands arrays on; the runtime has a pool of its own


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program's bytes, and by name how many operators of the net were handed to XNNPACK."""

    data: bytes
    delegated: Mapping[str, int]


def has_executorch() -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec("executorch") is not None


def _require() -> None:
    if not has_executorch():
        raise MissingError("programs for phones need executorch, which is not installed: pip install 'tersor[mobile]'")


def lower(exported: bytes, name: str = "net") -> Lowered:
    """Return the program for XNNPACK that a file of `torch.export.save` becomes; EngineError where there is none."""
    _require()
    with tempfile.TemporaryDirectory(prefix="tersor-lower-") as folder:
        source, target = Path(folder) / "program.pt2", Path(folder) / "program.pte"
        source.write_bytes(exported)
        worker = "tersor.engines.executorch.lowering_worker"
        given: dict[str, Any] = {"subject": name, "engine": f"{ENGINE}'s compiler", "environment": QUIET}
        child = Child(worker, [str(source), str(target)], timeout_s=LOWERING_S, packages=True, **given)
        child.close()
        return Lowered(target.read_bytes(), child.greeting["delegated"])


class Program(InChild):
    """A .pte file in ExecuTorch's runtime, in a child process; close it, or use it as a context.

    threads  of its pool; 0: as many as there are cores
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        _require()
        if not path.is_file():
            raise MissingError(f"{path}: no such file")
        options, worker = json.dumps({"threads": threads}), "tersor.engines.executorch.worker"
        given: dict[str, Any] = {"subject": path.name, "engine": ENGINE, "environment": QUIET}
        self._child = Child(worker, [str(path), options], timeout_s=CALL_S, packages=True, **given)
        self._folder = tempfile.TemporaryDirectory(prefix="tersor-program-")
        self.threads: int = self._child.greeting["threads"]
        self.load_s: float = self._child.greeting["load_s"]
        self.resident_bytes: int = self._child.greeting["loaded_bytes"]
        """What the process grew by since before the program was loaded; 0 where the system does not tell."""

    def run(self, inputs: Sequence[Array], *, batch: int = 1) -> list[Array]:
        """Return the outputs for arrays [n, …], `batch` items at a time as the program was made for."""
        counts = {len(each) for each in inputs}
        if len(counts) != 1 or counts == {0} or next(iter(counts)) % batch:
            raise ShapeError(f"{self._child.subject}: inputs of {sorted(counts)} items in batches of {batch}")
        target = Path(self._folder.name) / "outputs.npz"
        told = self._child.call("run", inputs=self._stored(inputs), outputs=str(target), batch=batch)
        self.resident_bytes = max(self.resident_bytes, told["resident_bytes"])
        with np.load(target, allow_pickle=False) as archive:
            return [archive[f"output{number}"] for number in range(len(archive.files))]

    def times_ms(self, inputs: Sequence[Array], *, seconds: float = 1.0, processor: bool = False) -> list[float]:
        """Return how long each of many runs on the same inputs took.

        processor  how long processors worked for it, all threads together: other work of a busy machine does not count
        """
        given = self._stored(inputs)
        told = self._child.call("time", inputs=given, seconds=seconds, rounds=LEAST_ROUNDS, most=MOST_ROUNDS)
        return [ns / 1e6 for ns in told["processor_ns" if processor else "run_ns"]]

    def _stored(self, inputs: Sequence[Array]) -> str:
        path = Path(self._folder.name) / "inputs.npz"
        arrays = {f"input{number}": np.ascontiguousarray(each) for number, each in enumerate(inputs)}
        try:
            np.savez(path, allow_pickle=False, **arrays)
        except OSError as error:
            raise EngineError(f"{self._child.subject}: inputs cannot be handed over: {error}") from error
        return str(path)

    def close(self) -> None:
        """End the process; closing twice is harmless."""
        super().close()
        self._folder.cleanup()
