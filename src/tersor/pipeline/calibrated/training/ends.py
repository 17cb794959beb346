"""The end alone, before all blocks: the output matrix, trained until its answers to full precision's states are right.

It is the widest matrix there is, and often the table of embeddings too: half of a small model's divergence is its own.
End to end a step costs ten times as much, and blocks that were trained before would have to be trained once more
when the embeddings that they read have changed. So it comes first, and what an error of the embeddings costs at the
end (felt.py) counts beside its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tersor.graph.training.distillation import Distance
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.calibrated.training.course import AT_ONCE, Course, Went, distance_from
from tersor.pipeline.calibrated.training.felt import divergence_behind
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.part import part
from tersor.pipeline.calibrated.training.whole import behind_states

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["train_end"]


def train_end(
    language: Language, taken: Tensor, kept: Tensor, course: Course, *, states: Tensor, felt: Tensor
) -> Went | None:
    """Train what is behind the last block in place, and return how that went; None where no matrix of it is rounded.

    taken, kept  ids [sequences, tokens] to learn from, and to look whether it helps
    states       [sequences, tokens, hidden] of full precision behind the last block, for `taken`
    felt         [hidden, hidden]: what an error of the embeddings costs
    Distances are nats per token: the divergence of the answers, and to second order that by the embeddings.
    """
    end = language.parts[-1]
    if not end.matrices:
        return None
    with torch.no_grad():
        wanted = torch.cat([language.full_states(some) for some in torch.split(kept, AT_ONCE)])
    went = course.run(
        part(end, language.ends),
        lambda numbers: ((states[numbers], taken[numbers]), (states[numbers], taken[numbers])),
        distance_from((wanted, kept), (wanted, kept), _distance(language, behind_states(language, None), felt)),
        _distance(language, behind_states(language, course.products), felt),
        sequences=len(taken),
        epochs=course.training.block_epochs,
        rate=course.training.block_rate,
        where="the end",
    )
    for matrix in end.matrices.values():
        matrix.settle()
    return went


def _distance(language: Language, answers: Distance, felt: Tensor) -> Callable[[Any, Any], Tensor]:
    """Return what tells (logits, embeddings) from those that (states, ids) should lead to."""
    embeddings = divergence_behind(felt)

    def told(made: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        (logits, embedded), (states, ids) = made, target
        return answers(logits, states) + embeddings(embedded, language.embedded_in_full(ids))

    return told
