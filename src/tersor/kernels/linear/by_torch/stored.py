"""A matrix with the codes and scales of its file, and where it is to be multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.core.errors import MissingError, SchemeError, ShapeError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Place", "StoredWeight", "place_of"]


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight of which each element is (code - zero)·scale; of eight-bit floats, code·scale.

    codes   uint8 [rows, columns] below 2^bits, or float8_e4m3fn [rows, columns]
    scales  float32 [rows, groups], of columns side by side
    zeros   uint8 [rows, groups]; None for floats
    bits    of a code

    Raises ShapeError where these do not fit together.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.codes, self.scales, self.zeros) if part is not None]
        is_float = self.codes.dtype == torch.float8_e4m3fn
        fits = self.codes.dim() == 2 and self.scales.dim() == 2 and min(self.codes.shape + self.scales.shape) > 0
        fits = fits and len(self.codes) == len(self.scales) and self.columns % self.groups == 0
        fits = fits and (self.zeros is None if is_float else self.codes.dtype == torch.uint8)
        if not fits or (not is_float and (self.zeros is None or self.zeros.shape != self.scales.shape)):
            raise ShapeError(f"{shapes} ({self.codes.dtype}) are no codes, scales and zeros of one matrix")

    @property
    def rows(self) -> int:
        """Outputs of the matrix."""
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        """Inputs of the matrix."""
        return int(self.codes.shape[1])

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return int(self.scales.shape[1])

    @property
    def is_float(self) -> bool:
        """Whether codes are eight-bit floats."""
        return self.zeros is None

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point of every group is half of the codes."""
        return self.zeros is not None and bool((self.zeros == 1 << (self.bits - 1)).all())


@dataclass(frozen=True, slots=True)
class Place:
    """A device.

    device      as torch names it
    capability  NVIDIA's compute capability; None on all others, AMD's under the name of cuda included
    """

    device: torch.device
    capability: tuple[int, int] | None = None


def place_of(name: str | torch.device) -> Place:
    """Return the device `name`; SchemeError where torch knows no such one, MissingError where this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SchemeError(f"torch knows no device {name!r}: give cpu, cuda, cuda:1, mps or xpu") from error
    if device.type == "meta":
        raise SchemeError("the device meta holds no numbers: give cpu, cuda, mps or xpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of them, by device
        raise MissingError(f"device {name} is not available here: {str(error).splitlines()[0]}") from error
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return Place(device, torch.cuda.get_device_capability(device) if is_nvidia else None)
