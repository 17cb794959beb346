"""How a language model is trained on its grid, and how that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.calibrate.ranks import Ranks
from tersor.core.errors import SchemeError
from tersor.core.plan import Plan
from tersor.formats import get
from tersor.methods.solving.trainable import check_trainable
from tersor.pipeline.calibrated.rewrites import ROTATION
from tersor.pipeline.calibrated.visitor import PLAIN

__all__ = [
    "QAT",
    "SEQUENCES",
    "TRAINING_SEQUENCES",
    "Training",
    "check_train",
    "check_training",
    "is_trained",
    "of_epochs",
    "split_training",
]

QAT, START = "qat", "best"
SEQUENCES = 2048
"""Of calibration text where none are asked for: training wants more of it than a Hessian."""
TRAINING_SEQUENCES = 8192
"""Of text that training alone reads where none are asked for."""

PRODUCTS = ("usual", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Training:
    """How to train; everything here shapes the bytes.

    epochs        passes over all text that it learns from, end to end; 0: blocks only
    block_epochs  passes of the output matrix and of each block alone before, over as much of it as fits (memory.py);
                  0: none
    batch         sequences of a step
    rate          of Adam at its highest, end to end: by how much of the distance of two values of its grid an update
                  moves a weight about; it rises over the first steps and falls to nothing in half a cosine. In such
                  shares coarse and fine matrices learn alike. Codes cross once such steps add up to 0.2
    block_rate    the same for blocks alone
    scale_rate    the same for scales: of the logarithm of a block's, and as a share of their size for whole multiples
    norm_rate     the same for norms and biases, as a share of their size
    damping       weight at the end of how far weights are from what they are rounded to, as in Options; 0: none
    stretch       steps after which is looked whether held-out text gained, and from which a killed run goes on
    patience      stretches without a gain after which training ends; None: never before its time, for most is won as
                  rates fall at the end
    seed          of the order of sequences
    products      in which matrix products are made: "float32", "bfloat16", or "usual": bfloat16 where the device has
                  instructions for it. What is judged and written is float32 always
    """

    epochs: int = 5
    block_epochs: int = 4
    batch: int = 4
    rate: float = 2e-3
    block_rate: float = 5e-3
    scale_rate: float = 1e-3
    norm_rate: float = 2e-3
    damping: float = 0.0
    stretch: int = 128
    patience: int | None = None
    seed: int = 0
    products: str = "usual"

    def __post_init__(self) -> None:
        if self.products not in PRODUCTS:
            raise SchemeError(f"training makes products in one of {', '.join(PRODUCTS)}, got {self.products!r}")
        if min(self.epochs, self.block_epochs) < 0 or self.epochs + self.block_epochs < 1:
            raise SchemeError(f"training takes at least one epoch, got {self.epochs} and {self.block_epochs} of blocks")
        if min(self.batch, self.stretch) < 1 or min(self.rate, self.block_rate, self.scale_rate, self.norm_rate) < 0:
            raise SchemeError("training takes a batch and a stretch of at least 1, and rates that are not below 0")


def of_epochs(epochs: int | None) -> Training:
    """Return the usual training with so many passes end to end, four fifths of them over parts alone; None: as usual.

    >>> (of_epochs(2).epochs, of_epochs(2).block_epochs), of_epochs(5) == of_epochs(None) == Training()
    ((2, 2), True)
    """
    return Training() if epochs is None else Training(epochs=epochs, block_epochs=-(-4 * epochs // 5))


def split_training(text: str) -> tuple[bool, str]:
    """Split a method as it is typed into whether it is trained in the end, and what it is trained from.

    >>> split_training("qat"), split_training("gptq+qat"), split_training("hadamard+qat"), split_training("awq")
    ((True, 'best'), (True, 'gptq'), (True, 'hadamard+best'), (False, 'awq'))
    """
    *before, last = text.split("+")
    if last != QAT:
        return False, text
    if not before or before == [ROTATION]:
        before = [*before, START]
    return True, "+".join(before)


def is_trained(method: str | None) -> bool:
    """Whether a method as it is typed trains in the end; None, which is plain rounding, does not."""
    return method is not None and split_training(method)[0]


def check_train(method: str | None, train: object) -> None:
    """Raise SchemeError where there is text to train on, `train`, and a method that does not."""
    if train is not None and not is_trained(method):
        raise SchemeError(
            f"text to train on means nothing to {method or 'plain rounding'}: the method must be qat, or end in +qat"
        )


def check_training(plan: Plan, ranks: Ranks) -> None:
    """Raise SchemeError where a plan has a format that cannot be trained (named), or none, or there are other ranks."""
    if ranks.size > 1:
        raise SchemeError(f"{QAT} trains in one process: start it without torchrun")
    matrices = [tensor for tensor in plan.tensors if tensor.format not in PLAIN]
    if not matrices:
        raise SchemeError(f"{QAT}: {plan.recipe.format} rounds no matrix, so there is nothing to train")
    for name in sorted({tensor.format for tensor in matrices}):
        check_trainable(get(name))
