"""The hidden states of all calibration sequences between two blocks: in memory, or in a file where that is too much."""

from __future__ import annotations

import errno
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.files.atomic import telling_remedy
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Activations"]

UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that set no room aside."""


class Activations:
    """Float32 [sequences, tokens, hidden], read and replaced a chunk of sequences at a time.

    spill  folder for a nameless file that holds them; None: memory
    Raises OSError, with the remedy, where the folder has no room: at once, where its file system can set room aside.
    """

    def __init__(self, sequences: int, tokens: int, hidden: int, *, chunk: int, spill: Path | None = None) -> None:
        self.chunk = max(1, chunk)
        self._shape = (sequences, tokens, hidden)
        self._spill = spill
        if spill is None:
            self._values = np.zeros(self._shape, np.float32)
            return
        # Nameless from the start: nothing is left behind by a killed run. Not mapped: a full disk would be a signal.
        with self._telling():
            self._file = _reserved(spill, self.nbytes)
        weakref.finalize(self, self._file.close)

    @property
    def nbytes(self) -> int:
        """Size, in memory or in the file."""
        return 4 * math.prod(self._shape)

    def chunks(self) -> Iterator[slice]:
        """Yield ranges of sequences, always the same."""
        for start in range(0, self._shape[0], self.chunk):
            yield slice(start, min(start + self.chunk, self._shape[0]))

    def read(self, part: slice, device: str = "cpu") -> Tensor:
        """Return a chunk, [chunk, tokens, hidden], as memory of its own."""
        if self._spill is None:
            return torch.from_numpy(np.array(self._values[part])).to(device)
        start, stop, _ = part.indices(self._shape[0])
        values = np.empty((stop - start, *self._shape[1:]), np.float32)
        self._file.seek(start * self._sequence_bytes)
        _through(values, self._file.readinto)
        return torch.from_numpy(values).to(device)

    def write(self, part: slice, values: Tensor) -> None:
        """Replace a chunk."""
        made = values.detach().cpu().numpy()
        if self._spill is None:
            self._values[part] = made
            return
        start, stop, _ = part.indices(self._shape[0])
        assert made.shape == (stop - start, *self._shape[1:])
        with self._telling():
            self._file.seek(start * self._sequence_bytes)
            _through(np.ascontiguousarray(made, np.float32), self._file.write)

    @property
    def _sequence_bytes(self) -> int:
        return 4 * math.prod(self._shape[1:])

    def _telling(self) -> AbstractContextManager[None]:
        return telling_remedy(lambda: str(self._spill))


def _reserved(folder: Path, nbytes: int) -> FileIO:
    """Return a nameless file of zeros whose room is taken already, as far as the file system can do that."""
    file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (outlives this function)
    try:
        file.truncate(nbytes)
        if nbytes and hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno not in UNABLE:
            file.close()
            raise
    return file


def _through(values: Float32, move: Callable[[memoryview], int | None]) -> None:
    """Move all bytes of an array, for the system may take fewer at a time."""
    data, done = values.reshape(-1).view(np.uint8).data, 0
    while done < len(data):
        moved = move(data[done:])
        assert moved, "the file has no name by which it could be cut short"
        done += moved
