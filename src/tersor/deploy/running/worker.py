"""The process of one engine: a thread for each request under way, one that listens.

Started by `supervised.py` with the arguments SOCKET_FD KIND OPTIONS_JSON. It answers pings while engines compute, ends
what is cancelled, and dies with the gateway: the socket closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from tersor.deploy.running.messages import Closed, Part, Unpacker, packed

__all__ = ["KINDS", "Emit", "Engine", "RefusedError", "die_with", "first_line", "main"]

KINDS = {
    "llama.cpp": "tersor.deploy.running.llama",
    "onnxruntime": "tersor.deploy.running.onnx",
    "openvino": "tersor.deploy.running.openvino.engine",
    "torch": "tersor.deploy.running.exported.engine",
    "transformers": "tersor.deploy.running.causal.engine",
}
"""What an engine is called in a deployment → the module whose `opened(options)` makes one."""
COUNTERS = {"activations": "tersor.deploy.running.activations"}
"""The same of what answers no client, and no deployment can name."""
SET_PARENT_DEATH_SIGNAL = 1
"""Of prctl(2)."""
BAD_REQUEST = 400
FAILED = 500
PIECE = 1 << 18
"""Bytes that are read from the socket at once."""


class RefusedError(Exception):
    """The engine is well and the request is not: a status of HTTP and the reason."""

    def __init__(self, reason: str, status: int = BAD_REQUEST) -> None:
        super().__init__(reason)
        self.status = status


def first_line(error: Exception) -> str:
    """Return what an engine says of its error, without the places in its source that some tell behind it."""
    return str(error).split("\n", maxsplit=1)[0][:400]


class Emit(Protocol):
    """Sends a part of an answer; True: stop, nobody waits for more."""

    def __call__(self, part: Part, payload: bytes, /) -> bool: ...  # noqa: D102 (the class says it)

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more, for engines that compute long before there is a part."""
        ...


class Engine(Protocol):
    """What a module of KINDS opens."""

    facts: dict[str, Any]

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> tuple[Part, bytes] | None:
        """Answer one request; called by many threads at once. RefusedError for what cannot be answered.

        Parts go to `emit` as they are made; the last one may be returned instead, which saves a message.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class _Answer:
    """The parts of one answer, on their way to the gateway."""

    def __init__(self, loop: _Loop, number: int) -> None:
        self._loop, self._number = loop, number

    def __call__(self, part: Part, payload: bytes, /) -> bool:
        if not self.is_cancelled():
            self._loop.send({"id": self._number}, payload, part)
        return self.is_cancelled()

    def is_cancelled(self) -> bool:
        return self._number in self._loop.cancelled


class _Threads:
    """As many threads as there are requests at once; they stay for those to come."""

    def __init__(self, work: Callable[[int, dict[str, Any], bytes], None]) -> None:
        self._work = work
        self._queue: SimpleQueue[tuple[int, dict[str, Any], bytes]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def do(self, number: int, request: dict[str, Any], payload: bytes) -> None:
        """Have some thread do the work, without waiting."""
        self._queue.put((number, request, payload))
        with self._lock:
            has_taker = self._idle > 0
            self._idle -= has_taker
        if not has_taker:
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work(*self._queue.get())
            with self._lock:
                self._idle += 1


class _Loop:
    def __init__(self, channel: socket.socket, engine: Engine) -> None:
        self.channel, self.engine = channel, engine
        self.sending = threading.Lock()
        self.cancelled: set[int] = set()
        self.active: set[int] = set()
        self.threads = _Threads(self._run)

    def send(self, message: dict[str, Any], payload: bytes = b"", part: Part = "") -> None:
        data = packed(message, payload, part) if isinstance(part, str) else packed({**message, "part": part}, payload)
        with self.sending:
            self.channel.sendall(data)

    def serve(self) -> None:
        """Take messages until the gateway closes."""
        unpacker = Unpacker()
        while piece := self.channel.recv(PIECE):
            for message, payload in unpacker.feed(piece):
                self._take(message, payload)

    def _take(self, message: dict[str, Any], payload: bytes) -> None:
        number, operation = int(message["id"]), message["operation"]
        if operation == "ping":
            self.send({"id": number, "done": True, "active": len(self.active)})
        elif operation == "cancel":
            self.cancelled.add(int(message["of"]))
            self.cancelled &= self.active
        else:
            self.active.add(number)
            self.threads.do(number, message["request"], payload)

    def _run(self, number: int, request: dict[str, Any], payload: bytes) -> None:
        last: dict[str, Any] = {"done": True}
        part: Part = ""
        data = b""
        try:
            made = self.engine.run(request, payload, _Answer(self, number))
            if made is not None:
                part, data = made
        except RefusedError as refusal:
            last = {"error": str(refusal), "status": refusal.status}
        except Exception as error:  # an engine's own error ends this request, not the process
            last = {"error": f"{type(error).__name__}: {error}", "status": FAILED}
        self.active.discard(number)
        self.cancelled.discard(number)
        try:
            self.send({"id": number, **last}, data, part)
        except OSError:
            os._exit(0)


def die_with(parent: int) -> None:
    """Ask Linux to end this process with its parent: one that hangs would never see the socket close.

    A parent that was killed before it was asked has left this process to another one already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    """Open the engine, say so, and serve."""
    die_with(int(sys.argv[4]))
    channel = socket.socket(fileno=int(sys.argv[1]))
    kind, options = sys.argv[2], json.loads(sys.argv[3])
    try:
        engine: Engine = importlib.import_module({**KINDS, **COUNTERS}[kind]).opened(options)
    except Exception as error:  # said to the gateway, whatever it is
        channel.sendall(packed({"error": f"{type(error).__name__}: {error}"}))
        os._exit(1)
    channel.sendall(packed({"ready": engine.facts}))
    with contextlib.suppress(Closed, OSError, ValueError, KeyError):
        _Loop(channel, engine).serve()
    os._exit(0)  # threads of engines may be busy for long, and nobody listens
