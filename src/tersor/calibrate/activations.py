"""The hidden states of all calibration sequences between two blocks: in memory, or in a file where that is too much."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Activations"]


class Activations:
    """Float32 [sequences, tokens, hidden], read and replaced a chunk of sequences at a time.

    spill  folder for a nameless file that holds them; None: memory
    """

    def __init__(self, sequences: int, tokens: int, hidden: int, *, chunk: int, spill: Path | None = None) -> None:
        shape = (sequences, tokens, hidden)
        self.chunk = max(1, chunk)
        if spill is None:
            self._values: Float32 = np.zeros(shape, np.float32)
            return
        # Nameless from the start: nothing is left behind by a killed run. The map outlives the open file.
        with tempfile.TemporaryFile(dir=spill) as file:
            self._values = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)

    @property
    def nbytes(self) -> int:
        """Size, in memory or in the file."""
        return int(self._values.nbytes)

    def chunks(self) -> Iterator[slice]:
        """Yield ranges of sequences, always the same."""
        for start in range(0, len(self._values), self.chunk):
            yield slice(start, min(start + self.chunk, len(self._values)))

    def read(self, part: slice, device: str = "cpu") -> Tensor:
        """Return a chunk, [chunk, tokens, hidden], as memory of its own."""
        return torch.from_numpy(np.array(self._values[part])).to(device)

    def write(self, part: slice, values: Tensor) -> None:
        """Replace a chunk."""
        self._values[part] = values.detach().cpu().numpy()
