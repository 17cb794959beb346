"""What the kernel of one format consists of, and the blocks that it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tersor.kernels.reference.arithmetic import constant, root, sum_in_order

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Blocks", "Kernel"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks to encode, element-major.

    x            float32 [block, blocks]
    importance   float32 [block, blocks] ≥ 0, None: no preference
    mean_square  float32 [blocks], mean of x² over the whole row that the block is part of (if `Kernel.uses_row`)
    """

    x: Tensor
    importance: Tensor | None = None
    mean_square: Tensor | None = None

    def row_weights(self) -> Tensor:
        """importance · sqrt(mean square of the row + x²), [block, blocks]: what an error costs."""
        mean = self.mean_square if self.mean_square is not None else mean_square(self.x)
        return self.weights(mean)

    def weights(self, spread: Tensor) -> Tensor:
        """importance · sqrt(spread + x²), [block, blocks]; importance must be there."""
        assert self.importance is not None, "weights of blocks without importance"
        return self.importance * root(spread + self.x * self.x)

    def grouped(self, width: int) -> tuple[Tensor, Tensor | None]:
        """x and importance as [width, groups · blocks], groups of a block one after the other."""
        return _grouped(self.x, width), None if self.importance is None else _grouped(self.importance, width)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Reference kernel of one format.

    search    blocks → grid and codes int32 [blocks, block], exactly as llama.cpp chooses them
    pack      grid, codes → uint8 [blocks, bytes]
    unpack    uint8 [blocks, bytes] → grid, codes
    uses_row  with importance, the weights depend on the whole row
    plain     there is nothing to search for: "best" and "ggml" are one
    """

    search: Callable[[Blocks], tuple[Any, Tensor]]
    pack: Callable[[Any, Tensor], Tensor]
    unpack: Callable[[Tensor], tuple[Any, Tensor]]
    uses_row: bool = False
    plain: bool = False


def mean_square(x: Tensor) -> Tensor:
    """Mean of x² over the first axis, summed in order."""
    total = sum_in_order(x * x)
    return total / constant(len(x), total)


def _grouped(x: Tensor, width: int) -> Tensor:
    """[block, blocks] to [width, blocks, groups] flattened to [width, blocks · groups]."""
    groups = len(x) // width
    return x.reshape(groups, width, -1).permute(1, 2, 0).reshape(width, -1)
