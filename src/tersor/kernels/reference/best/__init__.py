"""The search "best", ours and the default: the least squared error, weighted by importance, of what is decoded.

Errors are those of the scales as they are stored, rounded; without importance every weight is 1. For super-blocks:

1. start   every group: several inverse scales are tried; for the codes of each, the scale (and minimum) come from least
           squares; the one that explains the most wins, and is refitted to the codes it gives
2. step    the largest scale of the super-block (and the largest minimum) gives the stored step; the scales become
           whole multiples of it
3. polish  every group: neighbouring multiples are tried, codes rounded anew, errors compared
4. refit   the step (both steps) by least squares over the whole super-block, codes and multiples given; polish again

The state with the least error wins. Formats with one scale for a block take steps 1 and 4. The order of all operations
is part of the definition: native kernels give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tersor.kernels.reference.best import affine, coarse, symmetric
from tersor.kernels.reference.kernel import Blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SEARCHES"]

SEARCHES: Mapping[str, Callable[[Blocks], tuple[Any, Tensor]]] = MappingProxyType(
    symmetric.SEARCHES | affine.SEARCHES | coarse.SEARCHES
)
"""By format: blocks → grid and codes int32 [blocks, block]. Formats that have nothing to search for are not here."""
