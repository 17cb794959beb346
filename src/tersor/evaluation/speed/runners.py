"""The engines that can be timed, one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tersor.core.errors import MissingError, UnsupportedError
from tersor.engines import llama_cpp, transformers_timing
from tersor.engines.child import Child
from tersor.engines.llama_cpp import LlamaCpp
from tersor.engines.torch.checkpoints import is_quantized
from tersor.engines.transformers_timing import TransformersTiming
from tersor.evaluation.speed.traffic import Traffic, gguf_traffic, model_traffic
from tersor.evaluation.speed.workload import Workload

__all__ = ["RUNNERS", "Engine", "Runner", "heeded", "runner_for"]


class Engine(Protocol):
    """A loaded model that times itself; operations and answers are those of `engines/llama/timing.py`."""

    vocabulary_size: int
    load_s: float

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""

    def timed(self, operation: str, **fields: int | Sequence[Sequence[int]]) -> dict[str, Any]:
        """Do one operation."""

    def version(self) -> str:
        """Name and release."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Runner:
    """How artefacts of one kind are run.

    suits    whether the path is of that kind
    opens    loads it, as the workload says
    empty    the engine without a model
    traffic  what the model reads and computes for a token
    devices  whether it runs elsewhere than on the processor
    """

    suits: Callable[[Path], bool]
    opens: Callable[[Path, Workload], Engine]
    empty: Callable[[int, float], Child]
    traffic: Callable[[Path], Traffic]
    devices: bool = False


RUNNERS = {
    "llama.cpp": Runner(
        suits=lambda path: path.suffix == ".gguf" and path.is_file(),
        opens=lambda path, work: LlamaCpp(path, context=0, threads=work.threads, timeout_s=work.timeout_s),
        empty=lambda threads, timeout: llama_cpp.empty_engine(threads=threads, timeout_s=timeout),
        traffic=gguf_traffic,
    ),
    "transformers": Runner(
        suits=lambda path: (path / "config.json").is_file(),
        opens=lambda path, work: TransformersTiming(
            path, threads=work.threads, timeout_s=work.timeout_s, device=work.device, kernels=work.kernels
        ),
        empty=lambda threads, timeout: transformers_timing.empty_engine(threads=threads, timeout_s=timeout),
        traffic=model_traffic,
        devices=True,
    ),
}
"""Name of the engine → how it runs; the first that suits is taken."""


def runner_for(path: Path) -> tuple[str, Runner]:
    """Return name and row of the engine that runs `path`; MissingError or UnsupportedError if there is none."""
    if not path.exists():
        raise MissingError(f"{path}: no such file or folder")
    for name, runner in RUNNERS.items():
        if runner.suits(path):
            return name, runner
    raise UnsupportedError(f"{path}: bench runs a GGUF in llama.cpp and a folder with config.json in transformers")


def heeded(path: Path, runner: Runner, work: Workload) -> Workload:
    """Return what of a workload `path` is run with: devices are for some engines, kernels for quantized folders."""
    has_kernels = runner.devices and is_quantized(path)
    return replace(
        work, device=work.device if runner.devices else "cpu", kernels=work.kernels if has_kernels else "auto"
    )
