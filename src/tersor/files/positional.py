"""A file read at byte positions, never mapped, so that resident memory stays what was asked for."""

from __future__ import annotations

import os
import stat
import threading
import weakref
from pathlib import Path

from tersor.core.errors import FormatError, MissingError
from tersor.files.closing import Closing

__all__ = ["PositionalFile"]


class PositionalFile(Closing):
    """A regular file opened for reading at any offset; safe to share between threads.

    Raises MissingError when there is no such file or it may not be read, and FormatError when it is not a regular file
    (a pipe or a device could block for ever).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
        except OSError as error:
            raise MissingError(f"{path}: cannot be opened ({error.strerror or error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path}: not a regular file")
        self.size = status.st_size
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise MissingError(f"{path}: cannot be opened ({error.strerror or error})") from error
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, count: int) -> bytearray:
        """Return exactly `count` bytes from `offset`; FormatError when the file holds fewer."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(
                f"{self.path}: truncated: bytes {offset} to {offset + count} are needed, the file has {self.size}"
            )
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            got = self._read_some(view[done:], offset + done)
            if got == 0:
                raise FormatError(f"{self.path}: shrank while being read: it ended at byte {offset + done}")
            done += got
        return data

    def close(self) -> None:
        """Release the descriptor; reading afterwards fails. Closing twice is harmless."""
        self._finalizer()

    def _read_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        return len(data)
