"""A child process that holds an engine, and the conversation with it.

An engine written in C++ may abort, hang or eat all memory; here that ends the child alone. Its death, its refusal and
its silence become an EngineError with its last words, and no process is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError
from tersor.engines.frames import HEAD, MAX_FRAME
from tersor.files.closing import Closing

__all__ = ["Child", "InChild"]

_ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 16_384
_LOG_LINES = 12
_SETTLE_S = 5.0


class Child:
    """One child process, for one thread at a time.

    worker       dotted name of the module whose `main()` runs there; it imports nothing but the standard library and
                 our own modules, unless `packages` is set
    arguments    its `sys.argv[1:]`
    subject      what it works on, named in errors
    engine       name of the engine, for errors
    environment  set on top of ours
    timeout_s    longest wait for starting and for each call
    packages     whether installed packages can be imported there
    advice       what to add to a refusal, given its reason
    """

    def __init__(
        self,
        worker: str,
        arguments: Sequence[str],
        *,
        subject: str,
        engine: str,
        environment: Mapping[str, str],
        timeout_s: float,
        packages: bool = False,
        advice: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.subject, self.engine, self._timeout_s, self._advice = subject, engine, timeout_s, advice
        self._last: list[str] = []
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        entry = f"import sys; sys.path.append({str(_ROOT)!r}); from {worker} import main; main()"
        flags = ["-I"] if packages else ["-I", "-S"]
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, *flags, "-c", entry, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **environment},
            )
        except OSError as error:
            self._process = None
            self._log.close()
            raise EngineError(f"the child process for {subject} did not start: {error}") from error
        with self._watched("loading"):
            self.greeting = self._reply()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._kill()

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the child process; calling it twice is harmless."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            _close_quietly(process.stdin)
        try:
            process.wait(_SETTLE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        self._kill()

    def call(self, operation: str, *, into: Float32 | None = None, **fields: object) -> dict[str, Any]:
        """Ask for `operation` and return the answer; floats on the way fill `into`, row after row."""
        process = self._process
        if process is None or process.stdin is None:
            raise EngineError(f"the engine for {self.subject} is closed")
        data = json.dumps({"operation": operation, **fields}).encode()
        with self._watched(operation):
            process.stdin.write(HEAD.pack(len(data)) + data)
            process.stdin.flush()
            return self._reply(into)

    def _reply(self, into: Float32 | None = None) -> dict[str, Any]:
        target = memoryview(b"") if into is None else into.data.cast("B")
        filled = 0
        while True:
            (size,) = HEAD.unpack(self._read(HEAD.size))
            if size > MAX_FRAME:
                raise EOFError
            message: dict[str, Any] = json.loads(self._read(size))
            if "error" in message:
                raise _RefusedError(message["error"])
            if "done" in message:
                if filled != len(target):
                    raise EOFError
                return message
            step = 4 * int(message["floats"])
            self._read_into(target[filled : filled + step], step)
            filled += step

    def _read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._read_into(memoryview(buffer), size)
        return bytes(buffer)

    def _read_into(self, target: memoryview, size: int) -> None:
        if self._process is None or self._process.stdout is None or len(target) != size:
            raise EOFError
        while target:
            count = self._process.stdout.readinto(target)  # type: ignore[attr-defined] # Popen types it as IO
            if not count:
                raise EOFError
            target = target[count:]

    @contextmanager
    def _watched(self, operation: str) -> Iterator[None]:
        """Kill the child when time is up, and turn its death or refusal into an EngineError."""
        process = self._process
        late = threading.Event()

        def expire() -> None:
            late.set()
            if process is not None:
                process.kill()

        timer = threading.Timer(self._timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except _RefusedError as refusal:
            text = self._failure(operation, str(refusal))
            if operation == "loading":
                self._kill()
            raise EngineError(text) from None
        except (EOFError, OSError, ValueError):
            code = self._kill()
            reason = f"timed out after {self._timeout_s:g} s" if late.is_set() else f"died ({_describe(code)})"
            raise EngineError(self._failure(operation, reason)) from None
        except BaseException:
            self._kill()  # interrupted half-way: the pipe is out of step
            raise
        finally:
            timer.cancel()

    def _failure(self, operation: str, reason: str) -> str:
        text = f"{self.engine}, {operation} {self.subject}: {reason}{self._advice(reason)}"
        return text + "".join(f"\n  {line}" for line in self._last_lines())

    def _last_lines(self) -> list[str]:
        if self._log.closed:
            return self._last
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL))
        tail = self._log.read(_LOG_TAIL).decode(errors="replace")
        self._log.seek(0, os.SEEK_END)  # the child shares this offset
        return [line.rstrip()[:400] for line in tail.splitlines() if line.strip()][-_LOG_LINES:]

    def _kill(self) -> int | None:
        """End and reap the child now; its exit status, None if there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        code = process.wait()
        self._last = self._last_lines()
        self._log.close()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close_quietly(pipe)
        return code


class InChild(Closing):
    """What runs in a child process, `_child`: close it, or use it as a context."""

    _child: Child

    @property
    def pid(self) -> int | None:
        """Process id of the engine while it lives."""
        return self._child.pid

    def close(self) -> None:
        """End the child process; calling it twice is harmless."""
        self._child.close()


class _RefusedError(Exception):
    """The worker is alive and said no."""


def _describe(code: int | None) -> str:
    if code is None:
        return "no exit status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        return
