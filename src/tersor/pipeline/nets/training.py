"""Quantization-aware training of a classifier, taught by its float self: the loop behind `--method qat`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tersor.calibrate.workspace import Workspace
from tersor.core.errors import SchemeError
from tersor.graph.net import Net, constant
from tersor.graph.observe import Progress
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sessions import digest
from tersor.graph.training.convert import convert
from tersor.graph.training.distillation import divergence, lost_energy
from tersor.graph.training.module import to_torch
from tersor.graph.training.prepare import prepare
from tersor.graph.training.train import DAMPING, Epoch, Options, Trained, adam, train
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
Epochs: TypeAlias = "Callable[[int], Iterable[Batch]]"
"""Number of an epoch → what is trained on in it."""


@dataclass(frozen=True, slots=True)
class Training:
    """How to train.

    data        batches of (inputs, labels), or a path that is opened to such; without labels only the float net teaches
    epochs      passes over the data
    rate        of Adam at the start, as a share of each tensor's size; it falls to nothing in half a cosine
    damping     weight at the end of how far weights are from what they are rounded to, so that they settle; 0: none
    patience    epochs without a better one after which training ends; None: never before its time
    folder      for checkpoints: one that is not there yet, is empty, or is that of an earlier training
    resume      go on from the checkpoints that are in it, if they are of the same net, recipe, data and number of
                epochs: SchemeError says what is another. Without it they are removed, and training begins anew
    validation  batches as in `data` that tell which epoch is the best. With it `data` is gone through anew in every
                epoch, so that a loader that shuffles and augments does so each time, and is never held in memory;
                None: `data` is read once, and one batch in ten of it is kept back to tell
    """

    data: Iterable[Any] | Path
    epochs: int = 10
    rate: float = 6e-3
    damping: float = DAMPING
    patience: int | None = None
    folder: Path | None = None
    resume: bool = False
    validation: Iterable[Any] | Path | None = None


def train_quantized(
    quantized: QuantizedNet, training: Training, progress: Progress | None = None, *, original: Net | None = None
) -> tuple[QuantizedNet, Trained]:
    """Return the net with weights and steps that were trained on integers, and how the training went.

    original  the float net that checkpoints are known by, as it came; None: `quantized.source`

    The batch norms are folded; the loss is the divergence from the float net's answers, and the cross entropy of the
    labels where there are any. Classes lie along the axis that the labels lack; without labels along the last, of maps,
    [items, classes, height, width], along the second. Of one number an item the loss is the energy of what it is off
    by. What is returned is the epoch with the least loss on batches that were not trained on; where none has less than
    `quantized` had before, that one is, and the best epoch is -1.
    Raises SchemeError for too little data, labels that are no classes, or a net of several outputs, QualityError where
    the loss is no longer finite.
    """
    if training.epochs < 1 or not training.rate > 0 or not training.damping >= 0:
        raise SchemeError(
            f"training takes epochs and a rate above 0, and a damping that is not below it, got {training.epochs}, "
            f"{training.rate} and {training.damping}"
        )
    if isinstance(training.data, (str, Path)):
        raise SchemeError(f"{training.data}: open it first, as `open_images` does")
    inputs, outputs = len(quantized.source.inputs), [str(value.name) for value in quantized.source.outputs]
    if len(outputs) > 1:
        raise SchemeError(
            f"{quantized.source.name} has the outputs {', '.join(outputs)}; training is taught by one. For a loss of "
            "your own there are prepare, train and convert of tersor.graph.training"
        )
    kept, each = _kept_back(training, inputs) if training.validation is None else _gone_through_anew(training, inputs)
    if training.folder is not None:
        described = _description(quantized, original or quantized.source, training, kept)
        _open_folder(training.folder, described, resume=training.resume)
    teacher = to_torch(quantized.source.model).eval()
    module = prepare(quantized)
    lesson = _Lesson(kept, teacher)

    def told(epoch: Epoch) -> None:
        if progress is not None:
            progress("training", epoch.number + 1, training.epochs)

    options = Options(
        loss=lesson.cross_entropy if lesson.is_labelled else None,
        optimizer=adam(training.rate),
        teacher=teacher,
        distance=lesson.distance,
        damping=training.damping,
        validate=lesson.score,
        patience=training.patience,
        folder=training.folder,
        resume=training.folder is not None,
        progress=told,
    )
    with torch.no_grad():
        before = lesson.score(module.eval())
    trained = train(module, each, training.epochs, options)
    after = trained.epochs[trained.best].score
    if after is None or not after > before:
        return quantized, replace(trained, best=-1)
    return convert(module, quantized), trained


def _open_folder(folder: Path, described: dict[str, Any], *, resume: bool) -> None:
    """Make the folder for checkpoints, or find those to go on from."""
    if not (folder / "run.json").exists() and folder.exists() and any(folder.iterdir()):
        raise SchemeError(f"{folder}: holds other files than those of a training; name a folder of its own")
    Workspace(folder, described, resume=resume)


def _description(quantized: QuantizedNet, original: Net, training: Training, kept: Sequence[Batch]) -> dict[str, Any]:
    """Return what shapes a training, but for what PTQ made: its sums may differ in their last bit on another day.

    Data is known by the batches that are kept back, which come in the same order each time: others may be augmented.
    """
    weights = {str(name): constant(value) for name, value in original.graph.initializers.items()}
    arrays = [[item.detach().cpu().numpy() for item in (*inputs, label) if item is not None] for inputs, label in kept]
    return {
        "net": digest([{name: numbers for name, numbers in weights.items() if numbers is not None}]),
        "data": digest({str(place): array for place, array in enumerate(each)} for each in arrays),
        "recipe": repr(quantized.recipe),
        "epochs": training.epochs,
        "rate": training.rate,
        "damping": training.damping,
        "batches": len(training.data) if isinstance(training.data, Sized) else 0,
    }


def _kept_back(training: Training, inputs: int) -> tuple[list[Batch], Epochs]:
    """Return the batches that tell which epoch is best, and those to train on in an order of its own for each."""
    batches = [_batch(batch, inputs, number) for number, batch in enumerate(training.data)]  # type: ignore[arg-type]
    if len(batches) < LEAST_BATCHES:
        raise SchemeError(
            f"training needs at least {LEAST_BATCHES} batches, there are {len(batches)}: give smaller ones"
        )
    kept = batches[::KEPT_BACK] if len(batches) > KEPT_BACK else batches[:1]
    taken = [batch for number, batch in enumerate(batches) if not any(batch is other for other in kept)]
    labelled = {label is not None for _, label in batches}
    if len(labelled) > 1:
        raise SchemeError("training: some batches have labels and others have none")
    return kept, _shuffled(taken)


def _gone_through_anew(training: Training, inputs: int) -> tuple[list[Batch], Epochs]:
    """Return the batches that tell, and the loader itself for every epoch."""
    data, validation = training.data, training.validation
    assert not isinstance(data, Path), "opened before"
    assert validation is not None, "asked for"
    if isinstance(validation, (str, Path)):
        raise SchemeError(f"{validation}: open it first, as `open_images` does")
    if isinstance(data, Iterator):
        raise SchemeError("training data with `validation` is gone through in every epoch; an iterator ends with one")
    kept = [_batch(batch, inputs, number) for number, batch in enumerate(validation)]
    if not kept:
        raise SchemeError("validation: no batches")
    return kept, lambda _epoch: _Checked(data, inputs, is_labelled=kept[0][1] is not None)


class _Checked:
    """A loader whose batches are looked at as they come."""

    def __init__(self, data: Iterable[Any], inputs: int, *, is_labelled: bool) -> None:
        self._data, self._inputs, self._is_labelled = data, inputs, is_labelled

    def __iter__(self) -> Iterator[Batch]:
        for number, given in enumerate(self._data):
            batch = _batch(given, self._inputs, number)
            if (batch[1] is not None) != self._is_labelled:
                raise SchemeError(f"training batch {number}: labels in `data` or in `validation`, and not in both")
            yield batch

    def __len__(self) -> int:
        return len(self._data) if isinstance(self._data, Sized) else 0


def _shuffled(batches: Sequence[Batch]) -> Epochs:
    """Return what gives the batches in an order of its own to each epoch, whatever ran before."""

    def of(epoch: int) -> list[Batch]:
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch))
        return [batches[number] for number in order.tolist()]

    return of


class _Lesson:
    """What is learned: the float net's answers, and labels where there are any.

    axis  of an output, that holds the scores of classes; None where there is none
    """

    def __init__(self, kept: Sequence[Batch], teacher: Module) -> None:
        with torch.no_grad():
            self.taught = [teacher(*inputs) for inputs, _ in kept]
        self.kept = kept
        self.is_labelled = all(label is not None for _, label in kept)
        self.axis = _class_axis(self.taught[0], kept[0][1])
        self._divergence = divergence()

    def distance(self, made: Tensor, taught: Tensor) -> Tensor:
        """Return how far answers are from those of the float net, nats an item."""
        if self.axis is None:
            return lost_energy(made, taught)
        return self._divergence(made.movedim(self.axis, -1), taught.movedim(self.axis, -1))

    def cross_entropy(self, made: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of labels, nats an item."""
        assert self.axis is not None, "labels were seen"
        found: Tensor = torch.nn.functional.cross_entropy(made.movedim(self.axis, 1), labels)
        return found

    def score(self, module: Module) -> float:
        """Return less what is trained on, which tells more by a few hundred items than how many are right."""
        count = lost = 0.0
        for (inputs, labels), wanted in zip(self.kept, self.taught, strict=True):
            made = module(*inputs)
            loss = self.distance(made, wanted) + (self.cross_entropy(made, labels) if self.is_labelled else 0)
            lost, count = lost + float(loss) * len(made), count + len(made)
        return -lost / count


def _class_axis(taught: Tensor, labels: Tensor | None) -> int | None:
    shape = list(taught.shape)
    usual = 1 if len(shape) > 3 else len(shape) - 1
    fitting = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    if labels is not None:
        fitting = [axis for axis in fitting if shape[:axis] + shape[axis + 1 :] == list(labels.shape)]
        if not fitting:
            raise SchemeError(
                f"training: labels are {list(labels.shape)} and the net gives {shape}: it is no axis of classes more; "
                "leave the labels out, and the float net alone teaches"
            )
        return usual if usual in fitting else fitting[0]
    return usual if usual in fitting else None


def _batch(batch: Any, inputs: int, number: int) -> Batch:
    given = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(given) not in (inputs, inputs + 1):
        raise SchemeError(f"training batch {number}: {len(given)} arrays for {inputs} inputs and a label")
    tensors = tuple(torch.as_tensor(item) for item in given[:inputs])
    label = None if len(given) == inputs or given[inputs] is None else torch.as_tensor(given[inputs])
    if label is not None and label.is_floating_point():
        raise SchemeError(
            f"training batch {number}: labels are {label.dtype} {list(label.shape)}, and classes are whole numbers; "
            "leave the labels out, and the float net alone teaches"
        )
    return tensors, None if label is None else label.long()
