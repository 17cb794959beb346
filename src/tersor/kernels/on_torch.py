"""Native kernels on tensors of torch: the types of numbers that they know, and the threads that they run on."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tersor.kernels.codec import native
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["kinds", "on_torch"]


class Native(Protocol):
    """What the compiled module offers; memory by address.

    most_width  of a head that it attends with
    """

    most_width: int

    def linear(self, *arguments: Any) -> None: ...
    def attend(self, *arguments: Any) -> None: ...
    def place_values(self, *arguments: Any) -> None: ...
    def place_slopes(self, *arguments: Any) -> None: ...
    def use_team(self, address: int) -> None: ...


@cache
def kinds() -> dict[torch.dtype, int]:
    """Types of numbers → their places in REALS."""
    return {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@cache
def on_torch() -> Native | None:
    """The compiled kernels, asked for once: for small layers even that takes a share of the time."""
    module = cast("Native | None", native())
    if module is not None:
        _share_team(module)
    return module


def _share_team(module: Native) -> None:
    """Have the kernels run on torch's own OpenMP team, where torch brought one that can be called."""
    spec = importlib.util.find_spec("torch")
    folder = Path((spec and spec.origin) or "").parent
    for path in sorted((*folder.glob("lib/lib*omp*"), *folder.parent.glob("torch.libs/lib*omp*"))):
        try:
            parallel = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        module.use_team(ctypes.cast(parallel, ctypes.c_void_p).value or 0)
        return
