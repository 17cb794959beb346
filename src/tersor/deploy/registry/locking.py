"""One writer at a time, over all processes, and whoever waits in vain is told for whom.

The lock is one of the system on a small file beside the database. It ends with the process that holds it, however that
ends, so that nothing has to be cleaned up after a kill. The line in the file only says who holds it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from types import TracebackType

from tersor.core.errors import EngineError, MissingError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks; there SQLite's own lock keeps writers apart, one transaction each
    fcntl = None  # type: ignore[assignment]

__all__ = ["WriterLock"]

POLL_S = 0.02
MAX_LINE = 200


class WriterLock:
    """The right to write, held from `acquire` to `release`; nested calls of one holder count.

    wait_s  how long `acquire` waits for another writer, seconds
    does    what its holder does, for whoever waits in vain
    """

    def __init__(self, path: Path, wait_s: float, does: str = "writing this registry") -> None:
        self._path = path
        self._wait_s = wait_s
        self._does = does
        self._descriptor: int | None = None
        self._depth = 0

    def acquire(self) -> None:
        """Take the lock; EngineError naming its holder if it does not get free in time."""
        if not self._depth:
            self._descriptor = self._locked()
        self._depth += 1

    def release(self) -> None:
        """Give the lock back."""
        self._depth -= 1
        if not self._depth and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(self._path, flags, 0o666)
        except OSError as error:
            raise MissingError(f"{self._path}: cannot be written ({error.strerror or error})") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise MissingError(f"{self._path}: not a plain file; remove it")
        if fcntl is not None:
            deadline = time.monotonic() + self._wait_s
            while not _is_taken(descriptor):
                if time.monotonic() >= deadline:
                    holder = _line(descriptor)
                    os.close(descriptor)
                    raise EngineError(
                        f"{self._path.parent}: {holder} is {self._does}, and was after {self._wait_s:g} s; "
                        "try again, or end it"
                    )
                time.sleep(POLL_S)
        _say(descriptor)
        return descriptor


def _say(descriptor: int) -> None:
    """Write who holds the lock; what an earlier holder left may be longer, and is cut off last."""
    line = f"process {os.getpid()}\n".encode()
    with contextlib.suppress(OSError):  # a full disk keeps nobody from holding the lock
        os.write(descriptor, line)
        os.ftruncate(descriptor, len(line))


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _line(descriptor: int) -> str:
    """Return who says to hold the lock."""
    text = os.read(descriptor, MAX_LINE).decode("ascii", "replace").partition("\n")[0]
    return text if text.isprintable() and text else "another process"
