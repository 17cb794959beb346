"""Sums over what a weight matrix sees: Hessians, cross terms, squares. They add up over chunks and ranks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Sums"]

STRIPE = 192
"""Rows of a symmetric product that are computed at once: nearly half of it is skipped."""
BROAD = 512
"""The same for other products, where it only bounds the scratch memory."""


@dataclass(eq=False)
class Sums:
    """What one input of `columns` features has added up to; plain sums, so two of them add to the sum of both.

    Products of a chunk are float32; they are added in float64, so that neither the number of chunks nor the way they
    are dealt out over processes shows in the result once it is rounded to float32.

    tokens   rows seen
    squares  Σ x², float64 [columns]; where a product is kept, what its diagonal adds up to
    product  Σ x xᵀ of the inputs behind the quantized prefix, float64 [columns, columns], of which only the stripes on
             and above the diagonal are kept up; None: not wanted
    lag      Σ (y - x) xᵀ over paired rows, y the same token's input in the full-precision model; None: not wanted
    paired   rows whose y was given; where it was for none, y and x are the same
    residual Σ (s - r) xᵀ over paired rows, float64 [outputs, columns], s and r what outputs are added to in the
             full-precision and in the quantized model; None: not wanted, or nothing seen yet
    peaks    largest |x|, float32 [columns], the one thing here that does not add up; None: not wanted
    """

    tokens: int
    squares: Tensor
    product: Tensor | None
    lag: Tensor | None
    paired: int = 0
    residual: Tensor | None = None
    peaks: Tensor | None = None

    @classmethod
    def empty(cls, columns: int, *, hessian: bool, cross: bool, peaks: bool = False, device: str = "cpu") -> Sums:
        """Nothing seen yet."""

        def square() -> Tensor:
            return torch.zeros((columns, columns), dtype=torch.float64, device=device)

        squares = torch.zeros(columns, dtype=torch.float64, device=device)
        largest = torch.zeros(columns, device=device) if peaks else None
        return cls(0, squares, square() if hessian else None, square() if cross else None, peaks=largest)

    @property
    def nbytes(self) -> int:
        """Memory that the sums take."""
        return sum(part.nbytes for part in self.parts())

    def parts(self) -> list[Tensor]:
        """The tensors that ranks add up."""
        return [part for part in (self.squares, self.product, self.lag, self.residual) if part is not None]

    def add(self, inputs: Tensor) -> None:
        """Add inputs [tokens, columns]."""
        inputs = inputs.reshape(-1, inputs.shape[-1])
        if not len(inputs):
            return
        self.tokens += len(inputs)
        if self.peaks is not None:
            self.peaks = torch.maximum(self.peaks, inputs.abs().amax(dim=0))
        if self.product is None:
            self.squares += inputs.double().square_().sum(dim=0)
        else:
            self._add_symmetric(self.product, inputs)

    def _add_symmetric(self, product: Tensor, inputs: Tensor) -> None:
        for start in range(0, len(product), STRIPE):
            stripe = slice(start, start + STRIPE)
            part = inputs[:, stripe].T @ inputs[:, start:]
            product[stripe, start:] += part
            self.squares[stripe] += part.diagonal()

    def add_pair(self, inputs: Tensor, full: Tensor, difference: Tensor | None = None) -> None:
        """Add what some of the inputs' tokens have in the full-precision model, and their s - r [tokens, outputs]."""
        inputs = inputs.reshape(-1, inputs.shape[-1])
        self.paired += len(inputs)
        if self.lag is not None:
            _add_product(self.lag, full.reshape(inputs.shape) - inputs, inputs)
        if difference is not None:
            self._add_residual(inputs, difference.reshape(len(inputs), -1))

    def _add_residual(self, inputs: Tensor, difference: Tensor) -> None:
        if self.residual is None:
            shape = (difference.shape[1], inputs.shape[1])
            self.residual = torch.zeros(shape, dtype=torch.float64, device=inputs.device)
        _add_product(self.residual, difference, inputs)

    def hessian(self) -> Tensor | None:
        """Mean of x xᵀ over tokens, symmetric float32 [columns, columns]; None: not wanted, or no token seen."""
        if self.product is None or not self.tokens:
            return None
        made = torch.empty_like(self.product, dtype=torch.float32)
        for start in range(0, len(made), STRIPE):  # all at once would take the memory of the product several times
            stop = start + STRIPE
            upper = torch.triu(self.product[start:stop, start:])
            corner = upper[:, :STRIPE]
            corner += torch.triu(corner, 1).T
            upper += 0.0  # a zero has no sign
            upper /= self.tokens
            made[start:stop, start:] = upper
            made[stop:, start:stop] = upper[:, STRIPE:].T
        return made

    def mean_cross(self, hessian: Tensor | None = None) -> Tensor | None:
        """Mean of y xᵀ, float32 [columns, columns]; None: not wanted, or no token seen.

        All tokens tell of x xᵀ, the paired ones of what comes on top, which is small.

        hessian  what `hessian` returned, where it is at hand; it is not changed
        """
        hessian = self.hessian() if hessian is None else hessian
        if self.lag is None or hessian is None:
            return None
        made = hessian.clone()
        for start in range(0, len(made), BROAD):
            stripe = slice(start, start + BROAD)
            made[stripe] += (self.lag[stripe] / max(self.paired, 1)).float()
        return made

    def mean_residual(self) -> Tensor | None:
        """Mean of (s - r) xᵀ over paired tokens, float32 [outputs, columns]; None: not wanted, or none seen."""
        return (self.residual / self.paired).float() if self.residual is not None and self.paired else None

    def importance(self) -> Tensor:
        """Mean of x² over tokens, float32 [columns]: what an imatrix holds; zeros where no token was seen."""
        return (self.squares / max(self.tokens, 1)).float()

    def is_finite(self) -> bool:
        """Whether no NaN or infinity has come in."""
        return bool(torch.isfinite(self.squares).all())


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    for start in range(0, len(total), BROAD):
        total[start : start + BROAD] += left[:, start : start + BROAD].T @ right
