"""Train what a post-training method has prepared, and keep it where text that nothing has seen says it is better."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tersor.calibrate.sequences import Sequences, TokenIds, without_shared
from tersor.calibrate.workspace import Finished, Workspace
from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.core.tensor import QuantizedTensor
from tersor.evaluation.statistics import Interval, mean_interval
from tersor.formats import get
from tersor.kernels.lazy import LazyModule
from tersor.kernels.logits import compare_logits
from tersor.pipeline.calibrated.outcome import Outcome
from tersor.pipeline.calibrated.run import Prepared, Run, divided, exact
from tersor.pipeline.calibrated.training.blocks import train_blocks
from tersor.pipeline.calibrated.training.course import Course, Went
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.memory import of_blocks, plan_training
from tersor.pipeline.calibrated.training.part import Trained, products_on
from tersor.pipeline.calibrated.training.settings import QAT, Training
from tersor.pipeline.calibrated.training.whole import train_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Report", "train_prepared"]

LOOKED_AT = (2, 64)
"""Fewest and most sequences that tell which stretch is the best: one in sixteen where none were kept back."""
FOLDER = "training"


@dataclass(frozen=True, slots=True)
class Report:
    """How training went.

    start, trained  divergence from full precision on the sequences that decide, nats per token
    left_out        sequences of the text to train on that were not, since they share text with those that decide
    is_proved       whether those are sequences that neither training nor choosing has seen; else that choosing has seen
    same_top        share of those tokens whose likeliest continuation stays, trained
    """

    training: Training
    blocks: tuple[Went, ...]
    whole: Went | None
    start: Interval
    trained: Interval
    is_proved: bool
    same_top: float
    left_out: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether the trained weights are what is written: never where they are no better."""
        return self.trained.value < self.start.value

    def notes(self) -> list[str]:
        """Return lines for the Card."""
        told = [
            f"{QAT}: block {number + 1} alone, divergence by its outputs {went.before:.3g} → {went.after:.3g} nats in "
            f"{went.steps} steps{_told(went)}"
            for number, went in enumerate(self.blocks)
        ]
        if self.whole is not None:
            went = self.whole
            told.append(
                f"{QAT}: end to end, divergence {went.before:.4g} → {went.after:.4g} nats on the text that chose the "
                f"best stretch, loss {went.losses[0]:.4g} → {went.losses[-1]:.4g}, {went.steps} steps of "
                f"{self.training.batch} sequences in at most {self.training.epochs} epochs{_told(went)}"
            )
        if self.left_out:
            told.append(f"{QAT}: {self.left_out} sequences to train on left out: they share text with those that judge")
        where = "text that nothing has seen" if self.is_proved else "the text that chose the best stretch"
        verdict = "trained weights" if self.is_kept else "no gain, so what training started from"
        told.append(
            f"{QAT}: divergence {self.start.value:.4g} → {self.trained.value:.4g} nats on {where}; written: {verdict}"
        )
        return told


def train_prepared(
    prepared: Prepared, training: Training, run: Run, *, more: TokenIds, trains_vectors: bool
) -> tuple[Prepared, Report]:
    """Return what the run has prepared with trained weights in it, or as it was where they are no better.

    more            sequences [any number, length] to learn from beside those of the calibration; those that have text
                    of what judges are left out
    trains_vectors  whether norms and biases are trained too: the container must hold them as float32
    A run that was killed goes on from its last stretch with `run.resume`, and ends with the same bytes.
    """
    visitor = prepared.visitor
    learnt, looked_at, unseen = _texts(prepared.text, is_proved=run.proof)
    new = without_shared(more, np.concatenate([looked_at.numpy(), unseen.numpy()]))
    learnt = torch.cat([learnt, torch.from_numpy(new)])
    memory = plan_training(
        visitor.sources.values(), visitor.decoder, training, sequences=len(learnt), length=int(learnt.shape[1])
    )
    memory.check(run.tell)
    products = products_on(str(visitor.ranks.device), training)
    described = {"training": {**asdict(training), "products": str(products)}, "trains_vectors": trains_vectors}
    described["more"] = hashlib.sha256(new.tobytes()).hexdigest()
    workspace = Workspace(visitor.workspace.folder / FOLDER, described, resume=run.resume)
    course = Course(training, workspace.folder, products, progress=run.progress)
    alone = learnt[: of_blocks(len(learnt), learnt.shape[1], visitor.decoder.hidden)]
    of_a_block = course.steps(len(alone), training.block_epochs)
    course.total = of_a_block * visitor.decoder.layers + course.steps(len(learnt), training.epochs)
    with exact(), torch.enable_grad(), visitor.clock.stage("training"):
        language = Language(prepared, trains_vectors=trains_vectors)
        blocks, whole = _trained(language, alone, learnt, looked_at, course)
    for layer, part in enumerate(language.parts):
        workspace.save(layer, Finished(_packed(part, prepared.finished(layer).tensors), {}))
    after = replace(prepared, trained=workspace, _held=None)
    judge = unseen if len(unseen) else looked_at
    with exact(), visitor.clock.stage("proof"):
        start, _ = _divergence(language, _decoded(prepared), judge)
        found, same_top = _divergence(language, _decoded(after), judge)
    is_proved, left_out = bool(len(unseen)), len(more) - len(new)
    report = Report(training, blocks, whole, start, found, is_proved=is_proved, same_top=same_top, left_out=left_out)
    if not report.is_kept:
        return prepared, report
    if after.gain is not None:
        after.gain = replace(after.gain, method=found, same_top=(same_top, after.gain.same_top[1]))
    visitor.outcomes[:] = [_outcome(outcome, language) for outcome in visitor.outcomes]
    return after, report


def _trained(
    language: Language, alone: Tensor, learnt: Tensor, looked_at: Tensor, course: Course
) -> tuple[tuple[Went, ...], Went | None]:
    """Train blocks on ids `alone` and then the whole on `learnt`, in place."""
    blocks: tuple[Went, ...] = ()
    states: Tensor | None = None
    if course.training.block_epochs:
        with torch.no_grad():
            states = language.embedded_in_full(alone)
        blocks = tuple(train_blocks(language, alone, looked_at, course, targets=states))
        states = states if len(alone) == len(learnt) else None
    whole = train_whole(language, learnt, looked_at, course, states) if course.training.epochs else None
    return blocks, whole


def _texts(text: Sequences, *, is_proved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split the sequences into those to learn from, those that choose the best stretch, and those that prove.

    What training starts from was calibrated on the first: there it looks better than it is, and a stretch that gains
    could lose against it. So those that choose are half of what was kept back from it, where anything was.
    """
    taken, unseen = divided(text) if is_proved else (text, text.ids[:0])
    if len(unseen) >= 2 * LOOKED_AT[0]:
        looked_at, judging = _apart(unseen, min(len(unseen) // 2, LOOKED_AT[1]))
        return torch.from_numpy(taken.ids), looked_at, judging
    count = len(taken.ids)
    back = min(max(count // 16, LOOKED_AT[0]), LOOKED_AT[1], count // 2)
    looked_at, learnt = _apart(taken.ids, back)
    if not len(learnt) or not back:
        raise SchemeError(f"{QAT} needs sequences to learn from and others to look at, there are {len(text.ids)}")
    return learnt, looked_at, torch.from_numpy(unseen)


def _apart(ids: TokenIds, count: int) -> tuple[Tensor, Tensor]:
    """Return so many of the sequences, evenly spread, and the others."""
    places = np.linspace(0, len(ids) - 1, 2 * count + 1).round().astype(np.int64)[1::2]
    return torch.from_numpy(ids[places]), torch.from_numpy(np.delete(ids, places, axis=0))


def _packed(part: Trained, before: Mapping[str, QuantizedTensor]) -> dict[str, QuantizedTensor]:
    """Return what is written of a part: codes as training ended with them."""
    made = dict(before)
    for name, matrix in part.matrices.items():
        data = matrix.packed().cpu().numpy()
        made[name] = QuantizedTensor(matrix.grid.format, part.shapes[name], data)
    for name, vector in part.vectors.items():
        values = vector.detach().cpu().numpy()
        made[name] = QuantizedTensor(get("f32"), values.shape, get("f32").encode(values[None]))
    return made


def _decoded(prepared: Prepared) -> dict[str, Tensor]:
    """Return all weights as the file will hold them."""
    return {
        name: torch.from_numpy(tensor.dequantize())
        for layer in range(prepared.layers + 1)
        for name, tensor in prepared.finished(layer).tensors.items()
    }


def _divergence(language: Language, weights: Mapping[str, Tensor], ids: Tensor) -> tuple[Interval, float]:
    """Return the mean divergence from full precision over sequences, and the share of equal likeliest tokens."""
    weights = {name: values.to(language.device) for name, values in weights.items()}
    found, same = [], []
    for row in ids:
        targets = np.ascontiguousarray(row[1:].numpy(), dtype=np.int32)
        full, ours = (_rows(logits(weights, row[None])) for logits in (language.full_logits, language.logits))
        compared = compare_logits(full, ours, targets)
        found.append(float(compared.divergence.mean()))
        same.append(float(compared.same_top.mean()))
    return mean_interval(np.array(found)), float(np.mean(same))


def _rows(logits: Tensor) -> Float32:
    made: Float32 = np.ascontiguousarray(logits[0, :-1].cpu().numpy())
    return made


def _outcome(outcome: Outcome, language: Language) -> Outcome:
    """Return what became of a matrix: it aims at the model's answers now, no longer at its own outputs."""
    if not any(outcome.name in part.matrices for part in language.parts):
        return outcome
    return replace(outcome, method=f"{outcome.method}+{QAT}", error=None, rtn_error=None, reason="")


def _told(went: Went) -> str:
    if not went.is_kept:
        return ", no gain at any rate: left as it was"
    return "" if went.share == 1 else f", at {went.share:.2g} of the rates: more of them gained nothing"
