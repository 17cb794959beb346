"""How much memory training needs at its peak, told before it begins: the whole model, many times over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

from tersor.core.errors import MissingError
from tersor.core.quantities import size
from tersor.decoder import Decoder
from tersor.kernels.lazy import LazyModule
from tersor.models.model import ModelTensor
from tersor.pipeline.calibrated.memory import HEAP, PROGRAM
from tersor.pipeline.calibrated.training.course import AT_ONCE
from tersor.pipeline.calibrated.training.settings import Training
from tersor.targets.memory import available_bytes

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["TrainingMemory", "of_blocks", "plan_training"]

OF_A_WEIGHT = 60
"""Bytes for each weight: full precision 4, trained 4, its gradient 4, Adam 8, two older states 8, what rounding keeps
for the gradient 9 and makes on the way 16; the rest are scales and what the allocator holds."""
LOGITS, LOGITS_AT_ONCE = 4, 9
"""Float32 copies of the logits of a step: student, teacher, and two gradients; where they are not taken part by part,
as on a GPU, also what their comparison makes on the way."""
OF_A_STATE = 8
"""Bytes for each number of a hidden state: of the quantized model and of full precision."""
STATES = 8 << 30
"""Bytes of hidden states at most: blocks learn from as much of the text as goes into them, so that their number is the
same on every machine."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes at the peak.

    weights   of the model and all that belongs to them
    step      what a step keeps for its gradient, and its logits
    states    hidden states of all sequences before and behind a block; full precision's are held to the end
    available  on the device that trains; None: it does not tell
    program    beside them, where that device is the processor
    """

    weights: int
    step: int
    states: int
    available: int | None
    program: int = PROGRAM

    @property
    def total(self) -> int:
        """Largest resident size to expect: blocks are trained before the whole, so not all of both at once."""
        return self.program + ceil(HEAP * (self.weights + max(self.step + self.states // 2, self.states)))

    def check(self, tell: Callable[[str], None] | None = None) -> None:
        """Refuse what does not fit: MissingError says what to change; what fits is told."""
        parts = f"weights {size(self.weights)}, a step {size(self.step)}, hidden states {size(self.states)}"
        if self.available is not None and self.total > self.available:
            raise MissingError(
                f"training needs {size(self.total)} ({parts}), {size(self.available)} are free: the model is held "
                "whole. Shorter or fewer calibration sequences need less; best trains nothing and needs one block"
            )
        if tell is not None:
            program = f"program {size(self.program)}, " if self.program else ""
            tell(f"planned peak memory of training {size(self.total)}: {program}{parts}")


def of_blocks(sequences: int, length: int, hidden: int) -> int:
    """Return how many of so many sequences of `length` tokens blocks alone learn from.

    >>> of_blocks(24_000, 256, 256), of_blocks(2048, 512, 4096)
    (16384, 512)
    """
    return max(1, min(sequences, STATES // (OF_A_STATE * length * hidden)))


def plan_training(
    tensors: Iterable[ModelTensor],
    decoder: Decoder,
    training: Training,
    *,
    sequences: int,
    length: int,
    device: str = "cpu",
) -> TrainingMemory:
    """Work out the peak of training on at most `sequences` of `length` tokens."""
    shapes = [tensor.shape for tensor in tensors]
    weights, widest = sum(map(prod, shapes)), max(shape[-1] for shape in shapes)
    tokens, is_gpu = training.batch * length, device.startswith("cuda")
    # A layer keeps about a dozen states of hidden size and five of the feed-forward's for its gradient.
    step = 4 * tokens * decoder.layers * (12 * decoder.hidden + 5 * widest)
    # What chooses the best stretch has the logits of AT_ONCE sequences twice.
    logits = max(tokens * (LOGITS_AT_ONCE if is_gpu else LOGITS), 2 * AT_ONCE * length) * decoder.vocabulary
    states = OF_A_STATE * of_blocks(sequences, length, decoder.hidden) * length * decoder.hidden
    states = states if training.block_epochs else 0
    available = torch.cuda.mem_get_info(device)[0] if is_gpu else available_bytes()
    return TrainingMemory(OF_A_WEIGHT * weights, step + 4 * logits, states, available, 0 if is_gpu else PROGRAM)
