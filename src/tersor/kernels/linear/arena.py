"""Memory for weights in large pages.

A token reads every weight once, so that almost every page is new to the processor: with pages of 4 KiB, looking them
up halves the speed at which memory is read. Memory of malloc may be recycled and is in small pages then, for good.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Bytes
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["LINE", "Arena"]

LARGE_PAGE = 1 << 21
CHUNK = 1 << 26
LINE = 64
"""Tensors begin at multiples of this: what the processor fetches at a time."""


class Arena:
    """Tensors are copied into it one after the other; it lives as long as one of them does.

    chunk  bytes asked from the system at a time; what no tensor touches takes no memory
    """

    def __init__(self, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._free: Bytes = np.empty(0, np.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a copy of `tensor`, contiguous on the CPU, within the arena."""
        source = tensor.detach().contiguous().view(torch.uint8).reshape(-1).numpy()
        taken = -(-len(source) // LINE) * LINE
        if taken > len(self._free):
            self._free = _large_pages(max(taken, self._chunk))
        place, self._free = self._free[: len(source)], self._free[taken:]
        place[:] = source
        return torch.from_numpy(place).view(tensor.dtype).reshape(tensor.shape)


def _large_pages(size: int) -> Bytes:
    """Return at least `size` fresh bytes, in large pages where the system gives them to those who ask."""
    if size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, np.uint8)
    whole = -(-size // LARGE_PAGE) * LARGE_PAGE
    memory = mmap.mmap(-1, whole + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, np.uint8)
    start = -everything.ctypes.data % LARGE_PAGE
    return everything[start : start + whole]
