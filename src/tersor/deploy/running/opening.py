"""Every engine that a deployment can name, and how each is had: in a process of its own, or from another server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

from tersor.deploy.running.remote.remote import REMOTES, Remote
from tersor.deploy.running.supervised import Answer, Patience, Running, State
from tersor.deploy.running.worker import KINDS

__all__ = ["BATCHING_ENGINES", "ENGINES", "TENSOR_ENGINES", "Engine", "engine_of"]

ENGINES = (*KINDS, *REMOTES)
TENSOR_ENGINES = ("onnxruntime", "openvino", "torch", "v2")
"""Those that take tensors; the others take text."""
BATCHING_ENGINES = ("onnxruntime", "torch")
"""Those whose requests can be put together here; others do it themselves."""


class Engine(Protocol):
    """What the gateway asks: `supervised.Running` and `remote.Remote`."""

    state: State
    facts: dict[str, Any]

    @property
    def pid(self) -> int | None:
        """Process id, where it has one on this machine."""
        ...

    async def start(self) -> None:
        """Make it ready; EngineError where the deployment is wrong."""
        ...

    async def close(self) -> None:
        """End it."""
        ...

    def run(self, request: dict[str, Any], payload: bytes = b"") -> AsyncGenerator[Answer, None]:
        """Yield the parts of an answer; leaving early cancels the rest."""
        ...


def engine_of(
    name: str, kind: str, options: Mapping[str, Any], patience: Patience, on_state: Callable[[State, str], None]
) -> Engine:
    """Return an engine that has not started; `kind` is one of ENGINES."""
    made = Remote if kind in REMOTES else Running
    return made(name, kind, options, patience, on_state)
