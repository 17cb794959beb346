"""A part of a language model as a module of torch: the matrices and norms that are trained, and what runs on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.trainable import TrainableMatrix
from tersor.pipeline.calibrated.training.settings import Training
from tersor.targets.processor import processor

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Forward", "Trained", "made_trainable", "optimizer", "part", "products_on", "restless"]

Forward: TypeAlias = "Callable[..., Any]"
"""Weights by GGUF name and inputs → outputs."""
BETAS, TINY = (0.9, 0.999), 1e-15
SHIFT_SHARE = 2
"""A block's scale moves all of its weights together: by so much less than the multiples of its groups."""


class Trained:
    """What is trained: matrices on their grids and vectors in float, by GGUF name, with their shapes in the model."""

    def __init__(
        self,
        matrices: Mapping[str, TrainableMatrix],
        vectors: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.matrices = {name: made_trainable(matrix) for name, matrix in matrices.items()}
        self.vectors: dict[str, Tensor] = {name: torch.nn.Parameter(vector.clone()) for name, vector in vectors.items()}
        self.shapes = dict(shapes)

    def joined(self, other: Trained) -> Trained:
        """Return both, the same parameters."""
        made = Trained({}, {}, {**self.shapes, **other.shapes})
        made.matrices = {**self.matrices, **other.matrices}
        made.vectors = {**self.vectors, **other.vectors}
        return made

    def weights(self) -> dict[str, Tensor]:
        """Return what they decode to, with gradients."""
        values = {name: matrix.values().reshape(self.shapes[name]) for name, matrix in self.matrices.items()}
        return {**values, **self.vectors}

    def parameters(self) -> dict[tuple[str, str], Tensor]:
        """Return (GGUF name, what of it) → parameter."""
        inner = {(name, what): p for name, matrix in self.matrices.items() for what, p in matrix.parameters.items()}
        return {**inner, **{(name, "vector"): vector for name, vector in self.vectors.items()}}


def made_trainable(matrix: TrainableMatrix) -> TrainableMatrix:
    """Return the matrix with parameters of torch."""
    return replace(matrix, parameters={what: torch.nn.Parameter(p.clone()) for what, p in matrix.parameters.items()})


def part(trained: Trained, forward: Forward) -> Module:
    """Return a module that owns the parameters and computes `forward` on what they decode to."""
    made: Module = _part_class()(trained, forward)
    return made


def optimizer(training: Training, rate: float, share: float = 1.0) -> Callable[[Module], Optimizer]:
    """Return what makes Adam for a part: weights move by `rate` of their grid's spacing, all else of its own size.

    share  of all these rates

    Source: Kingma and Ba 2015, arXiv:1412.6980, with its moments. Gradients of single weights are as small as 1e-8
    here, so the constant beside their size is smaller than usual. Second moments that forget after a hundred steps make
    updates that swing: see docs/log.md.
    """

    def made(module: Any) -> Optimizer:
        groups: list[dict[str, Any]] = []
        trained: Trained = module.trained
        for (name, what), parameter in trained.parameters().items():
            size = float(parameter.detach().square().mean().sqrt()) or 1.0
            wanted = {
                "place": rate * trained.matrices[name].spacing if what == "place" else 0.0,
                "vector": training.norm_rate * size,
                "multiple": training.scale_rate * size,
                "minimum": training.scale_rate * size,
            }.get(what, training.scale_rate / SHIFT_SHARE)
            groups.append({"params": [parameter], "lr": share * wanted})
        return torch.optim.Adam(groups, lr=rate, betas=BETAS, eps=TINY, fused=True)

    return made


def products_on(device: str, training: Training) -> torch.dtype | None:
    """Return in which numbers a training makes its matrix products on a device; None: in float32.

    On a processor without instructions for bfloat16, or with a GPU that lacks them, they would be slower than those.
    """
    if training.products != "usual":
        return torch.bfloat16 if training.products == "bfloat16" else None
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = device == "cpu" and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(processor().flags)
    return torch.bfloat16 if has else None


def restless(module: Any) -> Callable[[], Tensor]:
    """Return what tells how far weights are from what they are rounded to, in shares of each matrix's size."""
    matrices: tuple[TrainableMatrix, ...] = tuple(module.trained.matrices.values())

    def told() -> Tensor:
        shares = [
            matrix.off_grid().square().sum() / matrix.parameters["place"].detach().square().mean().clamp_min(TINY)
            for matrix in matrices
        ]
        return torch.stack(shares).sum() if shares else torch.zeros(())

    return told


@functools.cache
def _part_class() -> Any:
    """Return the class; torch is loaded by now."""

    class Part(torch.nn.Module):
        def __init__(self, trained: Trained, forward: Forward) -> None:
            super().__init__()
            self.trained, self._forward = trained, forward
            for (name, what), parameter in trained.parameters().items():
                assert isinstance(parameter, torch.nn.Parameter), "made so"
                self.register_parameter(f"{name.replace('.', '/')}:{what}", parameter)

        def forward(self, *inputs: Tensor) -> Any:
            return self._forward(self.trained.weights(), *inputs)

    return Part
