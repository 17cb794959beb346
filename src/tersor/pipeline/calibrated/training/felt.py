"""What the answers feel of a change of a state: a matrix each, by which errors of embeddings and blocks are weighed.

Source: Li et al. 2021 (BRECQ), arXiv:2102.05426, section 3.2: the error of a block is weighed by the Fisher matrix of
its outputs, since that is what it costs at the end to second order.
Differs: the whole matrix over hidden numbers, not its diagonal, and that of the model's own predictions, not of labels;
a draw is a normal vector of the logits with the covariance of the predicted tokens, taken back through the model in
full precision, as in analyse/projections.py. What an error at one token adds to that at another is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tersor.graph.training.distillation import Distance
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.calibrated.training.language import Language

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["divergence_behind", "felt"]

FLOOR = 0.05
"""Added to the diagonal, as a share of its mean: directions that a sample says nothing of are not free."""


def felt(
    language: Language,
    ids: Tensor,
    draws: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Tensor]:
    """Return [hidden, hidden] F for the embeddings and each block: an error e of them costs ½ eᵀ F e nats per token.

    ids       int64 [sequences, tokens]
    draws     of every sequence; each is a pass forward and back
    progress  called with (what is done, passes done, passes)
    """
    blocks = language.blocks
    found = [torch.zeros(())] * (1 + len(blocks))
    random = torch.Generator().manual_seed(seed)
    rows = ids.repeat(draws, 1)
    for done, row in enumerate(rows):
        if progress is not None:
            progress("weighing errors of blocks", done, len(rows))
        hidden = language.embedded_in_full(row[None]).requires_grad_(True)
        states = [hidden]
        for block in blocks:
            hidden = block.traced(hidden)
            states.append(hidden)
        logits = language.ended_in_full(hidden)
        slopes = torch.autograd.grad(logits, states, _draw(logits.detach().float(), random).to(logits.dtype))
        for place, slope in enumerate(slopes):
            of_tokens = slope.flatten(0, 1).float()
            found[place] = found[place] + of_tokens.T @ of_tokens / len(of_tokens)
    return [matrix / len(rows) for matrix in found]


def _draw(logits: Tensor, random: torch.Generator) -> Tensor:
    """Return vectors [..., vocabulary] whose covariance is diag(p) - p pᵀ, p what `logits` predict."""
    p = logits.softmax(-1)
    normal = torch.randn(p.shape, generator=random).to(p.device) * p.sqrt()
    return normal - p * normal.sum(-1, keepdim=True)


def divergence_behind(matrix: Tensor) -> Distance:
    """Return what tells (outputs, wanted) [..., hidden] apart by what it costs at the end, nats per token."""
    size = len(matrix)
    floor = FLOOR * matrix.diagonal().mean().clamp_min(1e-12) * torch.eye(size, device=matrix.device)
    factor = torch.linalg.cholesky(0.5 * (matrix + floor))  # eᵀ L Lᵀ e = |Lᵀ e|²

    def distance(made: Tensor, wanted: Tensor) -> Tensor:
        cost: Tensor = ((made.float() - wanted.float()) @ factor).square().sum(-1).mean()
        return cost

    return distance
