"""A course of training: stretches of steps, judged by held-out text, the best one kept, resumed after a kill."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.core.errors import QualityError
from tersor.graph.training.checkpoints import load_state, read, write
from tersor.graph.training.train import Options, Trained, best_so_far, cosine, train
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.calibrated.training.part import optimizer, restless
from tersor.pipeline.calibrated.training.settings import Training

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch", "torch")

__all__ = ["AT_ONCE", "SHARES", "Course", "Went", "distance_from"]

AT_ONCE = 8
"""Sequences that go through a part together where nothing is trained."""
WARM = 0.05
"""Of the steps, over which rates rise: Adam's first steps are as large as its surest ones, and know nothing yet."""
SHARES = (1.0, 1 / 3, 1 / 9)
"""Of the rates, one after the other until held-out text gains: how much a part bears differs from block to block."""


def distance_from(
    wanted: Tensor | tuple[Tensor, ...], inputs: tuple[Tensor, ...], distance: Callable[[Any, Any], Tensor]
) -> Callable[[Module], float]:
    """Return what tells how far a part's outputs for `inputs` are from `wanted`, all [sequences, …]."""

    def told(module: Module) -> float:
        total = 0.0
        for start in range(0, len(inputs[0]), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            some = tuple(each[part] for each in inputs)
            right = tuple(each[part] for each in wanted) if isinstance(wanted, tuple) else wanted[part]
            total += float(distance(module(*some), right)) * len(some[0])
        return total / len(inputs[0])

    return told


def warmed(done: float) -> float:
    """Return the share of the rates when a share of the training is done: a rise, then half a cosine."""
    return min(done / WARM, 1.0) * cosine(done)


@dataclass(frozen=True, slots=True)
class Went:
    """How a part's training went: distance from full precision on held-out text, before and at the best stretch.

    losses    mean loss of every stretch of the last attempt; infinite where it did not stay finite
    steps     that it made
    share     of the rates that were asked for: at more of them nothing was gained
    is_kept   whether the best stretch was better than the start; if not, the part is as it was before
    """

    before: float
    after: float
    losses: tuple[float, ...]
    steps: int
    share: float
    is_kept: bool


@dataclass
class Course:
    """Trains one part after the other.

    folder    for checkpoints: one folder a part
    products  in which matrix products are made, None: in float32
    total     steps of all parts, for progress
    """

    training: Training
    folder: Path
    products: torch.dtype | None = None
    total: int = 0
    progress: Callable[[str, int, int], None] | None = None
    done: int = 0
    told: int = 0

    def steps(self, sequences: int, epochs: int) -> int:
        """Steps of so many passes over so many sequences."""
        return epochs * -(-sequences // self.training.batch)

    def run(
        self,
        module: Module,
        batch: Callable[[Tensor], tuple[Any, Any]],
        validate: Callable[[Module], float],
        loss: Callable[[Any, Any], Tensor],
        *,
        sequences: int,
        epochs: int,
        where: str,
        rate: float,
    ) -> Went:
        """Train a part in place, and leave it as it was where no stretch gained on held-out text.

        batch      numbers of sequences → inputs, one or a tuple, and what `loss` sets outputs beside
        validate   part at rest → distance from full precision, lower is better
        sequences  how many there are to learn from
        rate       of weights, at the start
        A part that is done keeps its weights alone on disk, what its attempts needed to go on is removed.
        """
        steps, begin = self.steps(sequences, epochs), self.done
        name = where.replace(" ", "-")
        path = self.folder / f"{name}.pt"
        self.done = begin + steps
        if path.exists():
            found = read(path)
            load_state(module, path, found["state"])
            return Went(**found["went"])
        stretches = max(1, round(steps / self.training.stretch))
        length = -(-steps // stretches)

        def stretch(number: int) -> _Stretch:
            numbers = list(self.order(sequences, number * length, length))
            return _Stretch(self, batch, numbers, begin + number * length, where)

        went = self._attempted(
            module, stretch, (stretches, length), self._options(loss, validate), rate=rate, name=name
        )
        write(path, {"went": asdict(went), "state": module.state_dict()})
        for attempt in range(len(SHARES)):
            shutil.rmtree(self.folder / f"{name}-{attempt}", ignore_errors=True)
        return went

    def _attempted(
        self,
        module: Module,
        stretch: Callable[[int], _Stretch],
        sizes: tuple[int, int],
        options: Options,
        *,
        rate: float,
        name: str,
    ) -> Went:
        """Try the rates one after the other; `sizes` are how many stretches there are, and steps of each."""
        assert options.validate is not None, "it says what is a gain"
        start = copy.deepcopy(module.state_dict())
        with torch.no_grad():
            before = -options.validate(module.eval())
        losses: tuple[float, ...] = ()
        for attempt, share in enumerate(SHARES):
            found: Trained | None
            folder, made = self.folder / f"{name}-{attempt}", optimizer(self.training, rate, share)
            try:
                found = train(module, stretch, sizes[0], replace(options, folder=folder, optimizer=made))
            except QualityError:  # no finite loss is no gain either, but what was gained before counts
                found = best_so_far(module, folder)
            losses = (math.inf,) if found is None else tuple(epoch.loss for epoch in found.epochs)
            score = None if found is None else found.epochs[found.best].score
            if score is not None and -score < before:
                return Went(before, -score, losses, len(losses) * sizes[1], share, is_kept=True)
            module.load_state_dict(start)
        return Went(before, before, losses, len(losses) * sizes[1], SHARES[-1], is_kept=False)

    def _options(self, loss: Callable[[Any, Any], Tensor], validate: Callable[[Module], float]) -> Options:
        return Options(
            loss=loss,
            schedule=warmed,
            products=self.products,
            damping=self.training.damping,
            restless=restless,
            validate=lambda part: -validate(part),
            patience=self.training.patience,
            keep_best=False,
            resume=True,  # an older training's folder is gone by now, if it is not to be gone on with
        )

    def order(self, size: int, first: int, count: int) -> Iterator[Tensor]:
        """Yield the numbers, below `size`, of the sequences of steps `first` to `first + count` - 1 of a part."""
        batch = self.training.batch
        a_pass = -(-size // batch)
        for step in range(first, first + count):
            generator = torch.Generator().manual_seed(self.training.seed + step // a_pass)
            order = torch.randperm(size, generator=generator)
            yield order[step % a_pass * batch : step % a_pass * batch + batch]


class _Stretch:
    """The batches of a stretch; telling how far it is as they are taken."""

    def __init__(
        self,
        course: Course,
        batch: Callable[[Tensor], tuple[Any, Any]],
        numbers: Sequence[Tensor],
        done: int,
        where: str,
    ) -> None:
        self._course, self._batch, self._numbers = course, batch, numbers
        self._done, self._where = done, where

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        course = self._course
        for place, numbers in enumerate(self._numbers):
            if course.progress is not None:
                course.told = max(course.told, self._done + place)  # another attempt begins at its part's first step
                course.progress(f"training {self._where}", min(course.told, course.total), course.total)
            yield self._batch(numbers)
