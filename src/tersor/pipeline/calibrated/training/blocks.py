"""Each block alone: trained until its outputs, on the inputs that it will see, are the full-precision model's.

Source: Chen et al. 2024 (EfficientQAT), arXiv:2407.11062, section 3.2.
Differs: it starts from a post-training method's codes, not from rounding; it aims at the states that the model in full
precision has there, so that it makes good what earlier blocks did wrong; errors are weighed by what they cost at the
end (felt.py); what did not gain stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.pipeline.calibrated.training.course import AT_ONCE, Course, Went, distance_from
from tersor.pipeline.calibrated.training.felt import divergence_behind
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.part import Forward, part

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["train_blocks"]


def train_blocks(
    language: Language, taken: Tensor, kept: Tensor, course: Course, *, targets: Tensor, felt: Sequence[Tensor]
) -> Iterator[Went]:
    """Train one block after the other in place, and yield how each went; distances are nats per token, to second order.

    taken, kept  ids [sequences, tokens] to learn from, and to look whether it helps
    targets      full precision's embeddings of `taken`; in the end the states behind its last block are in their place
    felt         [hidden, hidden] for each block: what an error of its outputs costs
    """
    with torch.no_grad():
        weights = {**language.fixed, **language.parts[-1].weights()}
        states, ours = language.embedded(weights, taken), language.embedded(weights, kept)
        wanted = language.embedded_in_full(kept)
    for layer, trained in enumerate(language.parts[:-1]):
        block, distance = language.blocks[layer], divergence_behind(felt[layer])
        for held in (targets, wanted):
            _advance(block.forward, held)
        module = part(trained, _forward(language, layer))
        yield course.run(
            module,
            _batches(states, targets),
            distance_from(wanted, (ours,), distance),
            distance,
            sequences=len(taken),
            epochs=course.training.block_epochs,
            rate=course.training.block_rate,
            where=f"block {layer + 1}",
        )
        for matrix in trained.matrices.values():
            matrix.settle()
        for held in (states, ours):
            _advance(module, held)


def _forward(language: Language, layer: int) -> Forward:
    def forward(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        return language.through_block(layer, {**language.fixed, **weights}, hidden)

    return forward


def _advance(function: Callable[[Tensor], Tensor], states: Tensor) -> None:
    """Put what becomes of the states in their place: they may be gigabytes."""
    with torch.no_grad():
        for some in torch.split(states, AT_ONCE):
            some.copy_(function(some))


def _batches(states: Tensor, targets: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda numbers: (states[numbers], targets[numbers])
