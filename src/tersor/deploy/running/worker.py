"""The process of one engine: a thread for each request, one that listens.

Started by `supervised.py` with the arguments SOCKET_FD KIND OPTIONS_JSON. It answers pings while engines compute, ends
what is cancelled, and dies with the gateway: the socket closes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import threading
from typing import Any, Protocol

from tersor.deploy.running.messages import Closed, packed, receive

__all__ = ["KINDS", "Emit", "Engine", "RefusedError", "main"]

KINDS = {
    "llama.cpp": "tersor.deploy.running.llama",
    "onnxruntime": "tersor.deploy.running.onnx",
    "torch": "tersor.deploy.running.exported.engine",
    "transformers": "tersor.deploy.running.causal.engine",
}
"""What an engine is called in a deployment → the module whose `opened(options)` makes one."""
SET_PARENT_DEATH_SIGNAL = 1
"""Of prctl(2)."""
BAD_REQUEST = 400
FAILED = 500


class RefusedError(Exception):
    """The engine is well and the request is not: a status of HTTP and the reason."""

    def __init__(self, reason: str, status: int = BAD_REQUEST) -> None:
        super().__init__(reason)
        self.status = status


class Emit(Protocol):
    """Sends a part of an answer; True: stop, nobody waits for more."""

    def __call__(self, part: dict[str, Any], payload: bytes, /) -> bool: ...  # noqa: D102 (the class says it)

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more, for engines that compute long before there is a part."""
        ...


class Engine(Protocol):
    """What a module of KINDS opens."""

    facts: dict[str, Any]

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> None:
        """Answer one request in parts; called by many threads at once. RefusedError for what cannot be answered."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class _Answer:
    """The parts of one answer, on their way to the gateway."""

    def __init__(self, loop: _Loop, number: int) -> None:
        self._loop, self._number = loop, number

    def __call__(self, part: dict[str, Any], payload: bytes, /) -> bool:
        if not self.is_cancelled():
            self._loop.send({"id": self._number, "part": part}, payload)
        return self.is_cancelled()

    def is_cancelled(self) -> bool:
        return self._number in self._loop.cancelled


class _Loop:
    def __init__(self, channel: socket.socket, engine: Engine) -> None:
        self.channel, self.engine = channel, engine
        self.sending = threading.Lock()
        self.cancelled: set[int] = set()
        self.active: set[int] = set()

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        data = packed(message, payload)
        with self.sending:
            self.channel.sendall(data)

    def serve(self) -> None:
        """Take messages until the gateway closes."""
        while True:
            message, payload = receive(self.channel)
            number, operation = int(message["id"]), message["operation"]
            if operation == "ping":
                self.send({"id": number, "done": True, "active": len(self.active)})
            elif operation == "cancel":
                self.cancelled.add(int(message["of"]))
                self.cancelled &= self.active
            else:
                self.active.add(number)
                threading.Thread(target=self._run, args=(number, message, payload), daemon=True).start()

    def _run(self, number: int, message: dict[str, Any], payload: bytes) -> None:
        try:
            self.engine.run(message["request"], payload, _Answer(self, number))
            last: dict[str, Any] = {"done": True}
        except RefusedError as refusal:
            last = {"error": str(refusal), "status": refusal.status}
        except Exception as error:  # an engine's own error ends this request, not the process
            last = {"error": f"{type(error).__name__}: {error}", "status": FAILED}
        self.active.discard(number)
        self.cancelled.discard(number)
        try:
            self.send({"id": number, **last})
        except OSError:
            os._exit(0)


def _die_with_the_gateway() -> None:
    """Ask Linux to end this process with its parent: one that hangs would never see the socket close."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Open the engine, say so, and serve."""
    _die_with_the_gateway()
    channel = socket.socket(fileno=int(sys.argv[1]))
    kind, options = sys.argv[2], json.loads(sys.argv[3])
    try:
        engine: Engine = importlib.import_module(KINDS[kind]).opened(options)
    except Exception as error:  # said to the gateway, whatever it is
        channel.sendall(packed({"error": f"{type(error).__name__}: {error}"}))
        os._exit(1)
    channel.sendall(packed({"ready": engine.facts}))
    try:
        _Loop(channel, engine).serve()
    except (Closed, OSError, ValueError, KeyError):
        os._exit(0)  # threads of engines may be busy for long, and nobody listens
