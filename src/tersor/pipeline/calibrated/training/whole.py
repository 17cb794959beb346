"""The whole model: trained until its answers are those of the model in full precision.

Source: Liu et al. 2023 (LLM-QAT), arXiv:2305.17888, section 2.2: the teacher's whole distribution is what is learned.
Differs: nothing is generated, the calibration text is what both read; weights, scales and norms are trained together.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tersor.graph.training.distillation import Distance, divergence
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.calibrated.training.course import AT_ONCE, Course, Went, distance_from
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.part import Trained, part

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["behind_states", "train_whole"]


def train_whole(language: Language, taken: Tensor, kept: Tensor, course: Course, states: Tensor | None = None) -> Went:
    """Train all parts together in place, and return how that went; distances are divergences in nats per token.

    taken, kept  ids [sequences, tokens] to learn from, and to look whether it helps
    states       of full precision behind the last block for `taken`, where they are at hand; None: made in every step
    """
    trained = Trained({}, {}, {})
    for one in language.parts:
        trained = trained.joined(one)
    with torch.no_grad():
        wanted = torch.cat([language.full_states(some) for some in torch.split(kept, AT_ONCE)])

    def batch(numbers: Tensor) -> tuple[Tensor, Tensor]:
        ids = taken[numbers]
        if states is not None:
            return ids, states[numbers]
        with _products(course.products, language.table.device):
            return ids, language.full_states(ids).float()

    return course.run(
        part(trained, language.logits),
        batch,
        distance_from(wanted, (kept,), behind_states(language, None)),
        behind_states(language, course.products),
        sequences=len(taken),
        epochs=course.training.epochs,
        rate=course.training.rate,
        where="end to end",
    )


def behind_states(language: Language, products: torch.dtype | None) -> Distance:
    """Return what tells logits from those that the states behind full precision's last block lead to.

    products  in which that last product is made; None: in float32
    """
    distance = divergence()

    def told(made: Tensor, states: Tensor) -> Tensor:
        with torch.no_grad(), _products(products, states.device):
            taught = language.ended_in_full(states)
        return distance(made, taught)

    return told


def _products(kind: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products are made in `kind`; None: as they are."""
    made: AbstractContextManager[object] = torch.autocast(device.type, kind, enabled=kind is not None)
    return made
