"""A matrix of integers in groups, laid out for the kernels."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.arena import LINE, Arena
from tersor.kernels.reference.linear import BLOCK, pack_blocks, pack_codes, unpack_blocks, unpack_codes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["REALS", "PackedWeight", "Real", "pack_weight"]

Real: TypeAlias = Literal["f32", "f16", "bf16"]

REALS: tuple[Real, ...] = ("f32", "f16", "bf16")
"""How numbers are stored; the kernels know a kind by its place here."""
MULTIPLE = 16
"""Groups are of so many columns, or several times that."""
WIDEST = 1 << 16
"""Sums over a group of more columns could leave 32 bits."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [rows, columns] of which each element is (code - zero)·scale; see `kernels/reference/linear.py`.

    rows    of the matrix; the last block may have more
    bits    4 or 8
    codes   uint8 [blocks, columns · bits · 2]
    scales  uint8 [blocks, groups, BLOCK · bytes]: numbers of kind `real`, in bytes that no cast of a module rounds
    real    how a scale is stored
    zeros   uint8 [blocks, groups, BLOCK]; None: half of the codes everywhere

    Raises ShapeError where these do not fit together.
    """

    rows: int
    bits: int
    codes: Tensor
    scales: Tensor
    real: Real
    zeros: Tensor | None = None

    def __post_init__(self) -> None:
        blocks = -(-self.rows // BLOCK)
        size = 4 if self.real == "f32" else 2
        fits = self.rows > 0 and self.bits in (4, 8) and self.codes.dim() == 2 and self.scales.dim() == 3
        fits = fits and len(self.codes) == blocks and self.codes.shape[1] % (self.bits * 2) == 0
        fits = fits and self.groups > 0 and self.scales.shape == (blocks, self.groups, BLOCK * size)
        fits = fits and self.columns % self.groups == 0 and is_group(self.columns // self.groups)
        zeros = self.zeros
        if not fits or (zeros is not None and zeros.shape != (blocks, self.groups, BLOCK)):
            shapes = [tuple(part.shape) for part in (self.codes, self.scales, zeros) if part is not None]
            raise ShapeError(f"{shapes} are no packed weight of {self.rows} rows and {self.bits} bits")
        for part in (self.codes, self.scales, zeros):
            if part is not None and (part.dtype != torch.uint8 or not part.is_contiguous()):
                raise ShapeError(f"packed weights are contiguous uint8, got {part.dtype} of stride {part.stride()}")

    def __getstate__(self) -> dict[str, object]:
        """What a copy or a file gets: the numbers, and not where they lie."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def columns(self) -> int:
        """Inputs of the matrix."""
        return int(self.codes.shape[1]) // (self.bits * 2)

    @cached_property
    def groups(self) -> int:
        """Groups of a row."""
        return int(self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that are read for every token: codes, scales and zero points."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros) if part is not None)

    @property
    def arguments(self) -> tuple[int, ...]:
        """What the native kernel wants to know of it: places in memory, so that others than the CPU's are refused."""
        known: tuple[int, ...] | None = self.__dict__.get("_known")
        if (
            known is None
            or known[4] != self.codes.data_ptr()  # torch moves what is shared with another process, in place
            or known[5] != self.scales.data_ptr()
            or (self.zeros is not None and known[7] != self.zeros.data_ptr())
        ):
            known = self.__dict__["_known"] = self._arguments()
        return known

    def _arguments(self) -> tuple[int, ...]:
        for part in (self.codes, self.scales, self.zeros):
            if part is not None and not part.is_cpu:
                raise ShapeError(f"the kernels run on the CPU, the weight lies on {part.device}")
        zeros = 0 if self.zeros is None else self.zeros.data_ptr()
        place = (self.codes.data_ptr(), self.scales.data_ptr(), REALS.index(self.real), zeros)
        return (self.rows, self.columns, self.columns // self.groups, self.bits, *place)

    def unpacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes uint8 [rows, columns], zeros uint8 [rows, groups] and scales float32 [rows, groups]."""
        codes = unpack_codes(self.codes, self.bits, self.rows)
        scales = unpack_blocks(self.scales.view(_dtype(self.real)), self.rows).to(torch.float32)
        if self.zeros is not None:
            return codes, unpack_blocks(self.zeros, self.rows), scales
        return codes, torch.full(scales.shape, 1 << (self.bits - 1), dtype=torch.uint8), scales

    def dequantized(self) -> Tensor:
        """Return the weight: float32 [rows, columns]."""
        codes, zeros, scales = self.unpacked()
        levels = codes.reshape(*scales.shape, -1).to(torch.float32) - zeros[..., None]
        return (levels * scales[..., None]).reshape(codes.shape)


def is_group(width: int) -> bool:
    """Tell whether the kernels take groups of `width` columns."""
    return width % MULTIPLE == 0 and MULTIPLE <= width <= WIDEST


def pack_weight(
    codes: Tensor, zeros: Tensor, scales: Tensor, *, bits: int, real: Real = "f32", arena: Arena | None = None
) -> PackedWeight:
    """Lay a matrix out for the kernels.

    codes   uint8 [rows, columns], below 2^bits
    zeros   uint8 [rows, groups]
    scales  float32 [rows, groups], of numbers that the kind `real` has
    bits    2, 3 or 4 are stored in 4, 8 in 8
    arena   memory to put it into, which matrices of one model should share; None: one of its own
    Raises ShapeError for arrays that do not fit together, UnsupportedError for groups that no kernel is there for.
    """
    if (
        codes.dim() != 2
        or zeros.shape != scales.shape
        or scales.dim() != 2
        or len(codes) != len(scales)
        or not len(codes)
    ):
        shapes = tuple(codes.shape), tuple(zeros.shape), tuple(scales.shape)
        raise ShapeError(f"codes, zeros and scales of one matrix are needed, got {shapes}")
    groups = scales.shape[1]
    width = codes.shape[1] // max(groups, 1)
    if groups * width != codes.shape[1] or not is_group(width):
        raise UnsupportedError(
            f"{codes.shape[1]} columns in {groups} groups: the kernels take groups of {MULTIPLE} to {WIDEST} columns, "
            f"in steps of {MULTIPLE}"
        )
    stored = 4 if bits <= 4 else 8
    plain = bool((zeros == 1 << (stored - 1)).all())
    lined = pack_blocks(scales.to(torch.float32)).to(_dtype(real)).view(torch.uint8)
    packed, points = pack_codes(codes, stored), None if plain else pack_blocks(zeros)
    arena = arena or Arena(packed.nbytes + lined.nbytes + (0 if points is None else points.nbytes) + 3 * LINE)
    points = None if points is None else arena.keep(points)
    return PackedWeight(len(codes), stored, arena.keep(packed), arena.keep(lined), real, points)


def _dtype(real: Real) -> torch.dtype:
    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[real]
