"""An engine in a process of its own, watched: what dies or hangs is ended and started again, later each time.

Requests of a process that died end with EngineError; the gateway asks another variant. Nothing here waits in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeAlias

from tersor.core.errors import EngineError
from tersor.deploy.running.channel import Channel, Inbox
from tersor.deploy.running.messages import Message, is_last

__all__ = ["Answer", "Lived", "Patience", "RequestError", "Running", "State"]

Answer: TypeAlias = Message
"""A part of an answer, and its bytes."""
State: TypeAlias = Literal["starting", "ready", "waiting", "closed"]
_ROOT = Path(__file__).resolve().parents[3]
_LOG_TAIL = 4096


class RequestError(Exception):
    """A request that ends here, and is to blame for it: another variant would refuse it too.

    status   of HTTP
    headers  of the response
    """

    def __init__(self, reason: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers or {}


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    start    until an engine is loaded
    ping     between two signs of life
    silence  without any after which it hangs
    cancel   after which a cancelled request must have ended: its engine hangs otherwise
    backoff  before the first new start; doubled each time up to `longest`
    probe    between two questions to a remote server whether it is ready
    steady   of life after which the next start waits no longer than the first
    """

    start: float = 120.0
    ping: float = 1.0
    probe: float = 5.0
    silence: float = 10.0
    cancel: float = 5.0
    backoff: float = 0.2
    longest: float = 30.0
    steady: float = 60.0


class Lived(ABC):
    """What is started and closed, or held in an `async with`; between, a task of its own looks after it."""

    _life: asyncio.Task[None] | None

    @abstractmethod
    async def start(self) -> None:
        """Make it ready."""

    @abstractmethod
    async def close(self) -> None:
        """End it."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def end_life(self) -> None:
        """End the task, where there is one."""
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life


@dataclass(eq=False)
class Running(Lived):
    """One engine; `start` it, and `close` it at the end.

    kind      a key of `worker.KINDS` or `worker.COUNTERS`
    options   of the engine: "path", "threads", …
    on_state  is told every change: (state, reason)
    facts     what the engine said of itself when it was ready
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    patience: Patience = field(default_factory=Patience)
    on_state: Callable[[State, str], None] = lambda _state, _reason: None
    state: State = field(default="starting", init=False)
    facts: dict[str, Any] = field(default_factory=dict, init=False)
    starts: int = field(default=0, init=False)
    _life: asyncio.Task[None] | None = field(default=None, init=False)
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)
    _channel: Channel | None = field(default=None, init=False)
    _waiting: dict[int, Inbox] = field(default_factory=dict, init=False)
    _number: int = field(default=0, init=False)
    _heard: float = field(default=0.0, init=False)
    _ready: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _reason: str = field(default="", init=False)

    async def start(self) -> None:
        """Start the engine and wait until it is ready; EngineError where it refuses, and it is closed then."""
        self._life = asyncio.create_task(self._live(), name=f"engine {self.name}")
        first = asyncio.create_task(self._ready.wait())
        done, _ = await asyncio.wait({first, self._life}, return_when=asyncio.FIRST_COMPLETED)
        if first not in done:
            first.cancel()
            await self.close()
            raise EngineError(self._reason)

    async def close(self) -> None:
        """End the process; nothing is left of it."""
        await self.end_life()
        await self._end()
        self._to("closed", "closed")

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return None if self._process is None else self._process.pid

    @property
    def active(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting)

    async def run(self, request: dict[str, Any], payload: bytes = b"") -> AsyncGenerator[Answer, None]:
        """Yield the parts of an answer; leaving early cancels the rest.

        Raises RequestError where the engine refuses the request, EngineError where it is not there or dies.
        """
        channel = self._channel
        if self.state != "ready" or channel is None:
            raise EngineError(f"{self.name}: the engine is {self.state}: {self._reason}")
        self._number += 1
        number = self._number
        parts = Inbox()
        self._waiting[number] = parts
        finished = False
        try:
            channel.send({"id": number, "operation": "run", "request": request}, payload)
            await channel.drained()
            while not finished:
                found = await parts.get()
                if found is None:
                    finished = True
                    raise EngineError(f"{self.name}: {self._reason}")
                message, data = found
                finished = is_last(message)
                if "error" in message:
                    raise _failure(self.name, message)
                if "part" in message:
                    yield message["part"], data
        except OSError as error:  # it has died, and its watcher is about to learn of what
            finished = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.patience.cancel):
                    while await parts.get() is not None:
                        pass
            raise EngineError(f"{self.name}: {self._reason or error}") from error
        finally:
            if finished:
                self._waiting.pop(number, None)
            else:
                self._cancel(number)

    def _cancel(self, number: int) -> None:
        """Tell the engine to stop; one that does not is hung, and ended."""
        channel = self._channel
        if channel is None or number not in self._waiting:
            self._waiting.pop(number, None)
            return
        with contextlib.suppress(OSError):
            channel.send({"id": 0, "operation": "cancel", "of": number})
        process, parts = self._process, self._waiting[number]
        asyncio.get_running_loop().create_task(self._watched_end(number, parts, process))

    async def _watched_end(self, number: int, parts: Inbox, process: asyncio.subprocess.Process | None) -> None:
        try:
            async with asyncio.timeout(self.patience.cancel):
                while (found := await parts.get()) is not None and not is_last(found[0]):
                    pass
        except TimeoutError:
            if process is self._process and process is not None:
                self._reason = f"did not stop within {self.patience.cancel:g} s of being cancelled"
                _kill(process)
        finally:
            self._waiting.pop(number, None)

    # The life of the process

    async def _live(self) -> None:
        wait = self.patience.backoff
        while True:
            began = time.monotonic()
            try:
                await self._once()
            except (EngineError, OSError) as error:  # the system may have no room for a process, a file or a socket
                self._reason = str(error)
                if not self._ready.is_set():
                    return  # never was ready: a mistake in the deployment, and no accident
            await self._end()
            steady = time.monotonic() - began >= self.patience.steady
            wait = self.patience.backoff if steady else min(wait * 2, self.patience.longest)
            self._to("waiting", self._reason)
            await asyncio.sleep(wait)
            self._to("starting", self._reason)

    async def _once(self) -> None:
        """Start the process, and read what it says until it dies."""
        with tempfile.TemporaryFile() as log:
            ours, theirs = socket.socketpair()
            try:
                self._process = await self._spawned(theirs, log)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            self.starts += 1
            hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

            def take(message: dict[str, Any], payload: bytes) -> None:
                self._heard = time.monotonic()
                if not hello.done():
                    hello.set_result(message)
                elif (parts := self._waiting.get(int(message["id"]))) is not None:
                    parts.put((message, payload))

            self._channel = channel = await Channel.opened(ours, take)
            first: set[asyncio.Future[Any]] = {hello, channel.closed}
            done, _ = await asyncio.wait(first, timeout=self.patience.start, return_when=asyncio.FIRST_COMPLETED)
            if hello not in done:
                reason = await self._last_words(log) if done else f"not loaded in {self.patience.start:g} s"
                raise EngineError(f"{self.name}: {reason}")
            if "error" in hello.result():
                raise EngineError(f"{self.name}: {hello.result()['error']}")
            self.facts = hello.result()["ready"]
            self._reason = ""
            self._to("ready", "")
            self._ready.set()
            pinging = asyncio.create_task(self._ping())
            try:
                await channel.closed
            finally:
                pinging.cancel()
            raise EngineError(f"{self.name}: {self._reason or await self._last_words(log)}")

    async def _spawned(self, channel: socket.socket, log: IO[bytes]) -> asyncio.subprocess.Process:
        entry = f"import sys; sys.path.append({str(_ROOT)!r}); from tersor.deploy.running.worker import main; main()"
        threads = str(self.options.get("threads", 1))
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", entry,
            str(channel.fileno()), self.kind, json.dumps(dict(self.options)), str(os.getpid()),
            pass_fds=(channel.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,  # a Ctrl-C at the terminal is the gateway's to handle
        )  # fmt: skip

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self.patience.ping)
            if time.monotonic() - self._heard > self.patience.silence and self._process is not None:
                self._reason = f"gave no sign of life for {self.patience.silence:g} s"
                _kill(self._process)
                return
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.send({"id": 0, "operation": "ping"})

    async def _last_words(self, log: IO[bytes]) -> str:
        process = self._process
        code = None
        if process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    code = await process.wait()
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - _LOG_TAIL))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        ended = "ended" if code is None else f"died of signal {-code}" if code < 0 else f"ended with {code}"
        return ended + (f": {lines[-1][:300]}" if lines else "")

    async def _end(self) -> None:
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        if self.state == "ready":
            self._to("waiting", self._reason)
        if channel is not None:
            channel.close()
        if process is not None:
            _kill(process)
            await process.wait()
        for parts in self._waiting.values():
            parts.put(None)

    def _to(self, state: State, reason: str) -> None:
        if state != self.state or state == "ready":
            self.state = state
            self.on_state(state, reason)


def _failure(name: str, message: dict[str, Any]) -> Exception:
    status = int(message.get("status", 500))
    if status < 500:
        return RequestError(str(message["error"]), status)
    return EngineError(f"{name}: {message['error']}")


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
