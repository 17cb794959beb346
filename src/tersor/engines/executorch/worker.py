"""The child process that holds ExecuTorch's runtime: one program, answered through files of arrays.

Started by `engines/child.py` with the arguments MODEL.pte OPTIONS_JSON. Its runtime aborts on some broken programs; the
parent sees the pipe close.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import Any, BinaryIO

import numpy as np

from tersor.engines.frames import Ready, serve

__all__ = ["main"]

WARMUPS = 3


class _Stage:
    """A program of one method, ready to run."""

    def __init__(self, path: str, threads: int) -> None:
        import torch  # noqa: PLC0415 - only ever in the child; its libraries must be there first
        from executorch.extension.pybindings import _C, data_loader  # noqa: F401, PLC0415

        self.torch = torch
        if threads:
            _C._unsafe_reset_threadpool(threads)
        self.threads = _C._threadpool_get_thread_count()
        before, began = _resident(), perf_counter()
        self.program = _C._load_program(path)
        self.method = self.program.load_method(self.program.get_method_name(0))
        self.facts = {"load_s": perf_counter() - began, "loaded_bytes": _resident() - before, "threads": self.threads}
        self.before = before

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer every row of inputs, one at a time as they are stored: [n, …] each."""
        inputs = self._inputs(request["inputs"])
        made: list[list[Any]] = []
        for place in range(len(inputs[0]) // request["batch"]):
            rows = slice(place * request["batch"], (place + 1) * request["batch"])
            found = self.method.call([each[rows].contiguous() for each in inputs])
            made.append([each.numpy().copy() for each in found])
        joined = {f"output{number}": np.concatenate(parts) for number, parts in enumerate(zip(*made, strict=True))}
        np.savez(request["outputs"], allow_pickle=False, **joined)
        return {"resident_bytes": _resident() - self.before}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run on the same inputs again and again: nanoseconds of each run, by the clock and of processors."""
        inputs = self._inputs(request["inputs"])
        for _ in range(WARMUPS):
            self.method.call(inputs)
        times: list[int] = []
        worked: list[int] = []
        end = perf_counter() + request["seconds"]
        while len(times) < request["rounds"] or (perf_counter() < end and len(times) < request["most"]):
            began, before = perf_counter_ns(), process_time_ns()
            self.method.call(inputs)
            worked.append(process_time_ns() - before)
            times.append(perf_counter_ns() - began)
        return {"run_ns": times, "processor_ns": worked}

    def _inputs(self, path: str) -> list[Any]:
        with np.load(path, allow_pickle=False) as archive:
            return [self.torch.from_numpy(archive[f"input{number}"]) for number in range(len(archive.files))]


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - read often
            row = next((line for line in file if line.startswith("VmRSS:")), "")
    except OSError:
        return 0
    return int(row.split()[1]) * 1024 if row else 0


_OPERATIONS = {"run": _Stage.run, "time": _Stage.time}


def main() -> None:
    """Load the program, then answer requests until stdin closes."""
    path, options = sys.argv[1:3]

    def load(_output: BinaryIO) -> Ready:
        stage = _Stage(path, json.loads(options)["threads"])
        return dict(stage.facts), lambda request: _OPERATIONS[request["operation"]](stage, request)

    serve(load)
