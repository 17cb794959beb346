"""transformers in a child process, timed there; a folder of Hugging Face form in, times out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.core.errors import EngineError, MissingError
from tersor.engines.child import Child, InChild

__all__ = ["TransformersTiming", "empty_engine"]

PLAIN = ("cpu", "kernels auto")
"""What is not worth a word in the name of an engine."""


class TransformersTiming(InChild):
    """A causal language model in transformers, in the type that its checkpoint names.

    path       a folder with config.json and weights
    threads    of torch
    timeout_s  longest wait, in seconds, for loading and for each call
    loading    options of `load_quantized` but for the path, types and the next two, for a quantized checkpoint
    device     of torch
    kernels    of a quantized checkpoint, as `load_quantized` takes them

    Raises EngineError (refused, died, timed out) and MissingError.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        timeout_s: float = 600,
        loading: Mapping[str, str | bool] | None = None,
        device: str = "cpu",
        kernels: str = "auto",
    ) -> None:
        if threads < 1 or timeout_s <= 0:
            raise EngineError(f"threads and timeout_s must be positive, got {threads} and {timeout_s}")
        if not (path / "config.json").is_file():
            raise EngineError(f"{path}: no config.json; transformers runs folders of Hugging Face form")
        self._child = _child(
            path, threads, timeout_s, {"device": device, "loading": {**(loading or {}), "kernels": kernels}}
        )
        self._where = "".join(f", {told}" for told in (device, f"kernels {kernels}") if told not in PLAIN)
        self.vocabulary_size = int(self._child.greeting["vocabulary_size"])
        self.load_s = float(self._child.greeting["load_s"])

    def version(self) -> str:
        """The engine's name and release, as `transformers 5.23.0, torch 2.13.0`, and what is unusual."""
        packages = (f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch"))
        return ", ".join(packages) + self._where

    def timed(self, operation: str, **fields: int | Sequence[Sequence[int]]) -> dict[str, Any]:
        """One of the operations of `engines/torch/timing.py`, which time themselves."""
        return self._child.call(operation, into=None, **fields)


def empty_engine(*, threads: int = 1, timeout_s: float = 600) -> Child:
    """The child process with torch and transformers loaded and no model."""
    return _child(None, threads, timeout_s, {"device": "cpu", "loading": {}})


def _child(path: Path | None, threads: int, timeout_s: float, options: Mapping[str, Any]) -> Child:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingError(f"running a model of Hugging Face form needs {package}: pip install 'tersor[torch]'")
    return Child(
        "tersor.engines.torch.timing",
        ["" if path is None else str(path), json.dumps({"threads": threads, **options})],
        subject="no model" if path is None else str(path),
        engine="transformers",
        environment={
            "OMP_NUM_THREADS": str(threads),
            "TRANSFORMERS_OFFLINE": "1",
            **({"CUDA_VISIBLE_DEVICES": ""} if options["device"] == "cpu" else {}),
        },
        timeout_s=timeout_s,
        packages=True,
    )
