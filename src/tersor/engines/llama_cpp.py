"""llama.cpp in a child process: tokens, logits and greedy text from a real GGUF.

The engine is the prebuilt llama.cpp that the PyPI package `xllamacpp` carries, called through its C interface by
`llama_worker.py`. It runs in a process of its own because it aborts on some broken files; an abort, a refusal or
a timeout becomes an EngineError with the engine's last words, and no process is left behind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, MissingError

__all__ = ["SUPPORTED", "LlamaCpp", "load_check"]

SUPPORTED = "2026.10.11549"
"""The xllamacpp release whose interface the worker was written against; others work if their layout agrees."""

_FRAME = struct.Struct("<I")
_MAX_FRAME = 1 << 30
_BATCH_BYTES = 64 << 20  # of logits held by the engine at once; larger vocabularies get smaller batches
_LOG_TAIL = 16_384
_LOG_LINES = 12
_SETTLE_S = 5.0


class LlamaCpp:
    """A GGUF loaded in llama.cpp; a context manager, for one thread at a time.

    path             the GGUF, or the first file of a split one
    context          most tokens of one call of `logits`, or of prompt plus answer of `generate`
    threads          of the engine
    vocabulary_only  load the tokenizer alone: no weights are read; `logits` and `generate` are refused
    timeout_s        longest wait, in seconds, for loading and for each call

    Runs on the CPU with a float32 KV cache and without flash attention, so that logits can be compared closely.
    Raises EngineError (refused, aborted, timed out: with the engine's last log lines) and MissingError.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int = 512,
        threads: int = 1,
        vocabulary_only: bool = False,
        timeout_s: float = 120,
    ) -> None:
        if context < 1 or threads < 1 or timeout_s <= 0:
            raise EngineError(
                f"context, threads and timeout_s must be positive, got {context}, {threads} and {timeout_s}"
            )
        self.path, self.context, self.vocabulary_only = Path(path), context, vocabulary_only
        self.vocabulary_size = 0
        self._timeout_s = timeout_s
        self._last: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        library = _library()
        if not self.path.is_file():
            raise EngineError(f"{self.path}: no such file")
        options: dict[str, object] = {
            "context": context,
            "batch_bytes": _BATCH_BYTES,
            "threads": threads,
            "vocabulary_only": vocabulary_only,
        }
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._start(library, options)
        with self._watched("loading"):
            self.vocabulary_size = int(self._reply()["vocabulary_size"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._kill()

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

    def version(self) -> str:
        """The engine's name and release, as `xllamacpp 2026.10.11549`."""
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of `text`; `add_special` adds what the file says (BOS, EOS), `parse_special` reads control tokens."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"the text is not valid Unicode: {error}") from error
        ids: list[int] = self._call("tokenize", text=text, add_special=add_special, parse_special=parse_special)["ids"]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens written out; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._call("detokenize", ids=self._valid(ids))["text"]
        return text

    def logits(self, ids: Sequence[int]) -> Float32:
        """Logits after each token of `ids`, from an empty cache: [len(ids), vocabulary_size] float32."""
        valid = self._fitting(ids, 0)
        out = np.empty((len(valid), self.vocabulary_size), np.float32)
        self._call("logits", into=out, ids=valid)
        return out

    def generate(self, ids: Sequence[int], count: int, *, stop: bool = False) -> list[int]:
        """`count` greedy continuations of `ids`; with `stop`, ends early after an end-of-text token."""
        if count < 0:
            raise EngineError(f"count must not be negative, got {count}")
        made: list[int] = self._call("generate", ids=self._fitting(ids, count), count=count, stop=stop)["ids"]
        return made

    def _valid(self, ids: Sequence[int]) -> list[int]:
        valid = [int(token) for token in ids]
        for token in valid:
            if not 0 <= token < self.vocabulary_size:
                raise EngineError(f"token {token} is outside the vocabulary of {self.vocabulary_size}")
        return valid

    def _fitting(self, ids: Sequence[int], more: int) -> list[int]:
        if self.vocabulary_only:
            raise EngineError(f"{self.path} was opened with vocabulary_only=True: it has no weights to run")
        valid = self._valid(ids)
        if not valid:
            raise EngineError("at least one token is needed, got none")
        if len(valid) + more > self.context:
            raise EngineError(
                f"{len(valid)} tokens and {more} to generate exceed the context of {self.context}; "
                f"open the engine with context={len(valid) + more}"
            )
        return valid

    def _start(self, library: Path, options: dict[str, object]) -> None:
        worker = Path(__file__).with_name("llama_worker.py")
        command = [sys.executable, "-I", "-S", str(worker), str(library), str(self.path), json.dumps(options)]
        environment = dict(os.environ)
        # No debugger attached on abort, no GPU taken, no spinning threads beyond those asked for.
        environment |= {"GGML_NO_BACKTRACE": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"OMP_NUM_THREADS": str(options["threads"])}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
            )
        except OSError as error:
            self._log.close()
            raise EngineError(f"the child process for {self.path} did not start: {error}") from error

    def _call(self, operation: str, *, into: Float32 | None = None, **fields: object) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None:
            raise EngineError(f"the engine for {self.path} is closed")
        data = json.dumps({"operation": operation, **fields}).encode()
        with self._watched(operation):
            process.stdin.write(_FRAME.pack(len(data)) + data)
            process.stdin.flush()
            return self._reply(into)

    def _reply(self, into: Float32 | None = None) -> dict[str, Any]:
        """The closing frame of an answer; floats on the way are put into `into`, row after row."""
        target = memoryview(b"") if into is None else into.data.cast("B")
        filled = 0
        while True:
            (size,) = _FRAME.unpack(self._read(_FRAME.size))
            if size > _MAX_FRAME:
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
        text = f"llama.cpp, {operation} {self.path}: {reason}"
        if reason.startswith("layout:"):
            text += f"; xllamacpp {SUPPORTED} is supported: pip install 'xllamacpp=={SUPPORTED}'"
        lines = self._last_lines()
        return text + "".join(f"\n  {line}" for line in lines)

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


def load_check(path: Path, *, threads: int = 1, timeout_s: float = 120) -> None:
    """Load `path` whole in llama.cpp and let it go; raises EngineError with the engine's reason if it refuses."""
    LlamaCpp(path, context=32, threads=threads, timeout_s=timeout_s).close()


class _RefusedError(Exception):
    """The worker is alive and said no."""


def _library() -> Path:
    """The llama.cpp library inside the xllamacpp package, found without importing the package."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise MissingError("running a GGUF needs llama.cpp: pip install 'tersor[llama]'")
    folder = Path(found.origin).parent
    for pattern in ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib"):
        for candidate in sorted(folder.glob(pattern)):
            return candidate
    raise MissingError(f"{folder} holds no llama.cpp library: pip install --force-reinstall 'tersor[llama]'")


def _describe(code: int | None) -> str:
    if code is None:
        return "no exit status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        return
