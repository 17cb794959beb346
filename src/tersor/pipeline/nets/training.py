"""Quantization-aware training of a classifier, taught by its float self: the loop behind `--method qat`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.calibrate.workspace import Workspace
from tersor.core.errors import SchemeError
from tersor.graph.observe import Progress
from tersor.graph.ptq import QuantizedNet
from tersor.graph.training.convert import convert
from tersor.graph.training.distillation import divergence
from tersor.graph.training.module import to_torch
from tersor.graph.training.prepare import prepare
from tersor.graph.training.train import Epoch, Options, Trained, adam, train
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Training", "train_quantized"]

KEPT_BACK = 10
"""One batch in so many is not trained on: it tells which epoch is the best."""
LEAST_BATCHES = 2

Batch = tuple[tuple[Any, ...], Any]


@dataclass(frozen=True, slots=True)
class Training:
    """How to train.

    data      batches of (inputs, labels), or a path that is opened to such; without labels only the float net teaches
    epochs    passes over the data
    rate      of Adam at the start, as a share of each tensor's size; it falls to nothing in half a cosine
    patience  epochs without a better one after which training ends; None: never before its time
    folder    for checkpoints: one that is not there yet, is empty, or is that of an earlier training
    resume    go on from the checkpoints that are in it, if they are of the same net, recipe and number of epochs
    """

    data: Iterable[Any] | Path
    epochs: int = 10
    rate: float = 6e-3
    patience: int | None = None
    folder: Path | None = None
    resume: bool = True


def train_quantized(
    quantized: QuantizedNet, training: Training, progress: Progress | None = None
) -> tuple[QuantizedNet, Trained]:
    """Return the net with weights and steps that were trained on integers, and how the training went.

    The batch norms are folded; the loss is the divergence from the float net's answers, and the cross entropy of the
    labels where there are any. The epoch with the least loss on batches that are kept back is what is returned; where
    none has less than `quantized` had before, that is, and the best epoch is -1.
    Raises SchemeError for too little data or another kind of net, QualityError where the loss is no longer finite.
    """
    if training.epochs < 1 or not training.rate > 0:
        raise SchemeError(f"training takes epochs and a rate above 0, got {training.epochs} and {training.rate}")
    if isinstance(training.data, (str, Path)):
        raise SchemeError(f"{training.data}: open it first, as `open_images` does")
    batches = [_batch(batch, len(quantized.source.inputs), number) for number, batch in enumerate(training.data)]
    if len(batches) < LEAST_BATCHES:
        raise SchemeError(
            f"training needs at least {LEAST_BATCHES} batches, there are {len(batches)}: give smaller ones"
        )
    kept = batches[::KEPT_BACK] if len(batches) > KEPT_BACK else batches[:1]
    taken = [batch for number, batch in enumerate(batches) if not any(batch is other for other in kept)]
    if training.folder is not None:
        if not (training.folder / "run.json").exists() and training.folder.exists() and any(training.folder.iterdir()):
            raise SchemeError(
                f"{training.folder}: holds other files than those of a training; name a folder of its own"
            )
        Workspace(training.folder, _description(quantized, training, len(batches)), resume=training.resume)
    teacher = to_torch(quantized.source.model).eval()
    module = prepare(quantized)
    is_labelled = all(label is not None for _, label in batches)

    def told(epoch: Epoch) -> None:
        if progress is not None:
            progress("training", epoch.number + 1, training.epochs)

    validate = _validator(kept, teacher, is_labelled=is_labelled)
    options = Options(
        loss=_cross_entropy if is_labelled else None,
        optimizer=adam(training.rate),
        teacher=teacher,
        validate=validate,
        patience=training.patience,
        folder=training.folder,
        resume=training.folder is not None,
        progress=told,
    )
    with torch.no_grad():
        before = validate(module.eval())
    trained = train(module, _shuffled(taken), training.epochs, options)
    after = trained.epochs[trained.best].score
    if after is None or not after > before:
        return quantized, replace(trained, best=-1)
    return convert(module, quantized), trained


def _description(quantized: QuantizedNet, training: Training, batches: int) -> dict[str, Any]:
    """Return what shapes a training, but for numbers: sums of floats may differ in their last bit on another day."""
    shapes = {
        str(name): list(map(str, value.shape or ())) for name, value in quantized.source.graph.initializers.items()
    }
    return {
        "net": hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest(),
        "recipe": repr(quantized.recipe),
        "epochs": training.epochs,
        "rate": training.rate,
        "batches": batches,
    }


def _shuffled(batches: Sequence[Batch]) -> Callable[[int], list[Batch]]:
    """Return what gives the batches in an order of its own to each epoch, whatever ran before."""

    def of(epoch: int) -> list[Batch]:
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch))
        return [batches[number] for number in order.tolist()]

    return of


def _cross_entropy(made: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(made, labels)


def _validator(kept: Sequence[Batch], teacher: Module, *, is_labelled: bool) -> Callable[[Module], float]:
    """Return a score: less what is trained on, which tells more by a few hundred items than how many are right."""
    distance = divergence()
    with torch.no_grad():
        taught = [teacher(*inputs) for inputs, _ in kept]

    def score(module: Module) -> float:
        count = lost = 0.0
        for (inputs, labels), wanted in zip(kept, taught, strict=True):
            made = module(*inputs)
            loss = distance(made, wanted) + (_cross_entropy(made, labels) if is_labelled else 0)
            lost, count = lost + float(loss) * len(made), count + len(made)
        return -lost / count

    return score


def _batch(batch: Any, inputs: int, number: int) -> Batch:
    given = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(given) not in (inputs, inputs + 1):
        raise SchemeError(f"training batch {number}: {len(given)} arrays for {inputs} inputs and a label")
    tensors = tuple(torch.as_tensor(item) for item in given[:inputs])
    label = None if len(given) == inputs else torch.as_tensor(given[inputs]).long()
    return tensors, label
