"""The whole model: trained until its answers are those of the model in full precision.

Source: Liu et al. 2023 (LLM-QAT), arXiv:2305.17888, section 2.2: the teacher's whole distribution is what is learned.
Differs: nothing is generated, the calibration text is what both read; weights, scales and norms are trained together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tersor.graph.training.distillation import divergence
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.calibrated.training.blocks import AT_ONCE
from tersor.pipeline.calibrated.training.course import Course, Went
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.part import Trained, part

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch", "torch")

__all__ = ["train_whole"]


def train_whole(language: Language, taken: Tensor, kept: Tensor, course: Course) -> Went:
    """Train all parts together in place, and return how that went; distances are divergences in nats per token."""
    trained = Trained({}, {}, {})
    for one in language.parts:
        trained = trained.joined(one)
    teacher = part(Trained({}, {}, {}), language.full_logits)
    return course.run(
        part(trained, language.logits),
        lambda numbers: taken[numbers],
        _validator(teacher, kept),
        teacher=teacher,
        sequences=len(taken),
        epochs=course.training.epochs,
        rate=course.training.rate,
        where="end to end",
    )


def _validator(teacher: Module, kept: Tensor) -> Callable[[Module], float]:
    distance = divergence()

    def validate(module: Module) -> float:
        parts = torch.split(kept, AT_ONCE)
        return sum(float(distance(module(some), teacher(some))) * len(some) for some in parts) / len(kept)

    return validate
