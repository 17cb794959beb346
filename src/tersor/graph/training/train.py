"""A training loop that does what QAT needs; a prepared net is a module, so that any other loop does too."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tersor.core.errors import QualityError, SchemeError
from tersor.graph.training.checkpoints import BEST, LAST, load_state, read, write
from tersor.graph.training.distillation import Distance, divergence
from tersor.graph.training.fake import fake_quantize_weight, off_grid
from tersor.graph.training.norms import freeze_norms
from tersor.graph.training.places import QUANTIZERS
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx
    from torch.nn import Module
    from torch.optim import Optimizer
else:
    torch, fx = LazyModule("torch", "torch"), LazyModule("torch.fx", "torch")

__all__ = ["DAMPING", "Epoch", "Options", "Trained", "adam", "best_so_far", "cosine", "restlessness", "train"]

Data: TypeAlias = "Iterable[Any] | Callable[[int], Iterable[Any]]"


DAMPING = 2e-3
"""What `restlessness` weighs beside the loss at the end of a training: benchmarks/qat_seeds.py compares."""
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the data: mean loss over its batches, and what `validate` said after it."""

    number: int
    loss: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training went; the module holds the weights of its best epoch, or of the last where none was validated."""

    epochs: tuple[Epoch, ...]
    best: int
    stopped_early: bool


def adam(rate: float = 6e-3, *, step_rate: float | None = None) -> Callable[[Module], Optimizer]:
    """Return what makes Adam for a module.

    rate       share of a tensor's root mean square by which one update moves its numbers about: folded batch norms
               leave tensors of any size, and what moves one of them at all makes noise of another
    step_rate  by which the steps of quantizers change; None: `rate`
    """

    def made(module: Module) -> Optimizer:
        groups: list[dict[str, Any]] = []
        for name, parameter in module.named_parameters():
            size = float(parameter.detach().square().mean().sqrt()) or 1.0
            is_step = name.startswith(f"{QUANTIZERS}.") and name.endswith(".shift")
            lr = (rate if step_rate is None else step_rate) if is_step else rate * size
            groups.append({"params": [parameter], "lr": lr})
        return torch.optim.Adam(groups, lr=rate)

    return made


def cosine(done: float) -> float:
    """Return the share of the learning rate that is left when a share of the training is done: half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * done))


def restlessness(module: Module) -> Callable[[], Tensor]:
    """Return what tells how far the trained weights of a prepared module are from those they are rounded to.

    Weights near the middle of two codes fall to either side from step to step, and the net is never the one that was
    trained; a loss that grows with this lets them settle. Every weight counts by its square, as a share of its
    tensor's mean square, so that what is rounded finely counts little. Weights whose batch norm is trained beside them
    are left out: what is rounded of them is stored nowhere.
    Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv:2203.08387, equation 6.
    Differs: in shares of each tensor's size, which is how `adam` moves them.
    """
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    found = {}
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        if node.op == "call_function" and node.target is fake_quantize_weight:
            weight, base, shift, *grid = node.args
            if weight.op == "get_attr" and tensors[weight.target].requires_grad:
                found[node.args] = tensors[weight.target], tensors[base.target], tensors[shift.target], grid

    def told() -> Tensor:
        shares = [
            off_grid(weight, base, shift, *grid).square().sum() / weight.detach().square().mean().clamp_min(TINY)
            for weight, base, shift, grid in found.values()
        ]
        return torch.stack(shares).sum() if shares else torch.zeros(())

    return told


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train.

    loss          of (made, target); None: only the teacher teaches, and batches need no target
    optimizer     makes one for the module
    schedule      share of the training done → share of the learning rate
    teacher       a net whose outputs are to be met: most often the float one
    distance      of (made, taught)
    weight        of the distance beside a loss of 1
    products      in which matrix products are made while it trains, as torch.bfloat16; None: as the module has them
    damping       of `restless` beside a loss of 1 at the end; it grows from nothing as `cosine` falls
    restless      module → what tells how far its weights are from what they are rounded to
    validate      module at rest → score, higher is better; without it there is no best epoch and no early stop
    patience      epochs without a better score after which training ends
    frozen_after  epochs after which batch norms keep their statistics; None: two thirds of them
    folder        where `last.pt` is written after every epoch and `best.pt` after every better one
    keep_best     whether `best.pt` is: `last.pt` has the best weights too
    resume        go on from `last.pt`, if it is there
    progress      called after every epoch
    """

    loss: Callable[[Any, Any], Tensor] | None
    optimizer: Callable[[Module], Optimizer] = field(default_factory=adam)
    schedule: Callable[[float], float] = cosine
    teacher: Module | None = None
    distance: Distance = field(default_factory=divergence)
    weight: float = 1.0
    products: torch.dtype | None = None
    damping: float = DAMPING
    restless: Callable[[Module], Callable[[], Tensor]] = restlessness
    validate: Callable[[Module], float] | None = None
    patience: int | None = None
    frozen_after: int | None = None
    folder: Path | None = None
    keep_best: bool = True
    resume: bool = False
    progress: Callable[[Epoch], None] | None = None


def train(module: Module, data: Data, epochs: int, options: Options) -> Trained:
    """Train a prepared module in place, and leave it at rest with its best weights.

    data  batches (inputs, target), inputs a tensor or a tuple of them; gone through once an epoch. Or a function of the
          number of the epoch that returns them, for an order that does not depend on what ran before
    A training that was resumed makes the weights of one that was not, bit for bit, if the data comes in the same order:
    torch's random numbers are saved too. Raises QualityError where the loss is no longer finite.
    """
    if options.loss is None and options.teacher is None:
        raise SchemeError("nothing to learn from: give a loss, or a teacher")
    run = _Run(module, options, epochs)
    if options.resume and options.folder is not None and (options.folder / LAST).exists():
        run.restore(options.folder / LAST)
    while len(run.epochs) < epochs and not run.is_over():
        run.epoch(data(len(run.epochs)) if callable(data) else data)
        run.save()
    return run.finish()


def best_so_far(module: Module, folder: Path) -> Trained | None:
    """Put the best weights of a training that did not end into the module; None where no epoch of it did."""
    path = folder / LAST
    if not path.exists():
        return None
    found = read(path)
    load_state(module, path, found["best_state"])
    module.eval()
    return Trained(tuple(Epoch(*told) for told in found["epochs"]), found["best"], stopped_early=True)


class _Run:
    def __init__(self, module: Module, options: Options, epochs: int) -> None:
        self.module, self.options, self.total = module, options, epochs
        self.optimizer = options.optimizer(module)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.epochs: list[Epoch] = []
        self.best, self.best_state = -1, copy.deepcopy(module.state_dict())
        self.device = next(module.parameters()).device
        self.restlessness = options.restless(module)
        if options.teacher is not None:
            options.teacher.eval()

    def is_over(self) -> bool:
        """Whether patience is at its end."""
        patience = self.options.patience
        return patience is not None and self.best >= 0 and len(self.epochs) - 1 - self.best >= patience

    def epoch(self, batches: Iterable[Any]) -> None:
        number = len(self.epochs)
        self._freeze()
        self.module.train()
        total = torch.zeros((), device=self.device)
        count, length = 0, len(batches) if isinstance(batches, Sized) else 0
        for batch in batches:
            done = (number + (count / length if length else 0)) / self.total
            total += self._step(batch, min(done, 1.0))
            count += 1
        if not count:
            raise SchemeError("the data has no batches; data that is gone through once cannot be trained on for epochs")
        loss = float(total) / count
        if not math.isfinite(loss):
            raise QualityError(f"the loss is {loss} in epoch {number + 1}; train with a lower learning rate")
        self._validate(Epoch(number, loss, None))

    def _step(self, batch: Any, done: float) -> Tensor:
        share = self.options.schedule(done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        inputs, target = batch if self.options.loss is not None or isinstance(batch, (tuple, list)) else (batch, None)
        inputs = _moved(inputs if isinstance(inputs, (tuple, list)) else (inputs,), self.device)
        kind, taught = self.options.products, None
        with torch.autocast(self.device.type, kind, enabled=kind is not None):
            made = self.module(*inputs)
            if self.options.teacher is not None:
                with torch.no_grad():
                    taught = self.options.teacher(*inputs)
        loss = torch.zeros((), device=self.device)
        if self.options.loss is not None:
            loss = loss + self.options.loss(made, _moved(target, self.device))
        if taught is not None:
            loss = loss + self.options.weight * self.options.distance(made, taught)
        told = loss.detach()
        if self.options.damping:
            loss = loss + self.options.damping * (1 - cosine(done)) * self.restlessness().to(self.device)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return told

    def _freeze(self) -> None:
        after = self.options.frozen_after
        if not isinstance(self.module, fx.GraphModule):
            return  # only there are norms that keep statistics
        if len(self.epochs) >= (math.ceil(self.total * 2 / 3) if after is None else after):
            freeze_norms(self.module)

    def _validate(self, epoch: Epoch) -> None:
        if self.options.validate is not None:
            self.module.eval()
            with torch.no_grad():
                epoch = Epoch(epoch.number, epoch.loss, float(self.options.validate(self.module)))
        best = self.epochs[self.best].score if self.epochs else None
        if epoch.score is None or best is None or math.isnan(best) or epoch.score > best:
            self.best, self.best_state = epoch.number, copy.deepcopy(self.module.state_dict())
        self.epochs.append(epoch)
        if self.options.progress is not None:
            self.options.progress(epoch)

    def save(self) -> None:
        folder = self.options.folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.options.keep_best and self.best == len(self.epochs) - 1:
            write(folder / BEST, {"state": self.best_state, "epoch": self.best})
        told = [[epoch.number, epoch.loss, epoch.score] for epoch in self.epochs]
        content = {"epochs": told, "best": self.best, "best_state": self.best_state, "random": torch.get_rng_state()}
        write(folder / LAST, {**content, "state": self.module.state_dict(), "optimizer": self.optimizer.state_dict()})

    def restore(self, path: Path) -> None:
        found = read(path)
        load_state(self.module, path, found["state"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.epochs = [Epoch(*told) for told in found["epochs"]]
        self.best, self.best_state = found["best"], found["best_state"]
        torch.set_rng_state(found["random"])

    def finish(self) -> Trained:
        if self.epochs:
            self.module.load_state_dict(self.best_state)
        self.module.eval()
        return Trained(tuple(self.epochs), self.best, len(self.epochs) < self.total)


def _moved(values: Any, device: torch.device) -> Any:
    if isinstance(values, (tuple, list)):
        return type(values)(_moved(value, device) for value in values)
    return values.to(device) if hasattr(values, "to") else values
