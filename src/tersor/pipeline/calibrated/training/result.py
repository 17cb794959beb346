"""Train what a post-training method has prepared, and keep it where text that nothing has seen says it is better."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tersor.analyse.side_by_side import Divergence
from tersor.calibrate.sequences import Sequences, TokenIds, without_shared
from tersor.calibrate.workspace import Finished, Workspace
from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.core.tensor import QuantizedTensor
from tersor.evaluation.statistics import Interval, mean_interval
from tersor.formats import get
from tersor.kernels.lazy import LazyModule
from tersor.kernels.logits import compare_logits
from tersor.pipeline.calibrated.held_out import Gain
from tersor.pipeline.calibrated.outcome import Outcome
from tersor.pipeline.calibrated.run import Prepared, Run, divided, exact
from tersor.pipeline.calibrated.training.blocks import train_blocks
from tersor.pipeline.calibrated.training.course import AT_ONCE, Course, Went
from tersor.pipeline.calibrated.training.ends import train_end
from tersor.pipeline.calibrated.training.felt import felt
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.memory import of_blocks
from tersor.pipeline.calibrated.training.part import Trained, products_on
from tersor.pipeline.calibrated.training.settings import QAT, Training
from tersor.pipeline.calibrated.training.whole import train_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Report", "check_sequences", "train_prepared"]

LOOKED_AT = (2, 64)
"""Fewest and most sequences that tell which stretch is the best: one in sixteen where none were kept back."""
FELT = 256
"""Sequences, at most, that tell what is felt of an error."""
FOLDER = "training"
COURSE = 3
"""Number of the way in which all this is done: work that an older way began is not gone on with."""


@dataclass(frozen=True, slots=True)
class Report:
    """How training went.

    start, trained  divergence from full precision on the sequences that decide, nats per token
    left_out        sequences to learn from that were not, since they share text with those that decide
    is_proved       whether those are sequences that neither training nor choosing has seen; else that choosing has seen
    same_top        share of those tokens whose likeliest continuation stays, trained
    """

    training: Training
    end: Went | None
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
        told = []
        if self.end is not None:
            told.append(
                f"{QAT}: the output matrix alone, divergence by it and by the embeddings {self.end.before:.3g} → "
                f"{self.end.after:.3g} nats in {self.end.steps} steps{_told(self.end)}"
            )
        told += [
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
    texts = _texts(prepared.text, is_proved=run.proof)
    judge = texts.judging if len(texts.judging) else texts.looked_at
    own, new = (without_shared(ids, np.concatenate([texts.looked_at, judge])) for ids in (texts.learnt, more))
    if not len(own) + len(new):
        raise SchemeError(f"{QAT}: all sequences share text with those that judge, so none are left to learn from")
    left_out = len(texts.learnt) - len(own) + len(more) - len(new)
    learnt, looked_at = torch.from_numpy(np.concatenate([own, new])), torch.from_numpy(texts.looked_at)
    products = products_on(str(visitor.ranks.device), training)
    workspace = Workspace(
        visitor.workspace.folder / FOLDER,
        {
            "training": {**asdict(training), "products": str(products)},
            "trains_vectors": trains_vectors,
            "more": _digest(new),
            "text": _digest(own, texts.looked_at, judge),
            "course": COURSE,
            "device": str(visitor.ranks.device).partition(":")[0],
        },
        resume=run.resume,
    )
    course = Course(training, workspace.folder, products, progress=run.progress)
    alone = learnt[: of_blocks(len(learnt), learnt.shape[1], visitor.decoder.hidden)]
    with exact(), torch.enable_grad(), visitor.clock.stage("training"):
        language = Language(prepared, trains_vectors=trains_vectors)
        end, blocks, whole = _trained(language, alone, learnt, looked_at, course)
    for layer, part in enumerate(language.parts):
        workspace.save(layer, Finished(_packed(part, prepared.finished(layer).tensors), {}))
    after = replace(prepared, trained=workspace, _held=None)
    with exact(), visitor.clock.stage("proof"):
        start, found = (_divergence(language, _decoded(one), torch.from_numpy(judge)) for one in (prepared, after))
    report = Report(
        training,
        end,
        blocks,
        whole,
        mean_interval(start.kl),
        mean_interval(found.kl),
        is_proved=bool(len(texts.judging)),
        same_top=float(found.same_top.mean()),
        left_out=left_out,
    )
    if prepared.gain is not None:  # all figures of the same sequences
        rtn = prepared.gain.only(texts.places).of_rtn
        prepared.gain, after.gain = Gain(start, rtn), Gain(found, rtn)
    if not report.is_kept:
        return prepared, report
    visitor.outcomes[:] = [_outcome(outcome, language) for outcome in visitor.outcomes]
    return after, report


def _trained(
    language: Language, alone: Tensor, learnt: Tensor, looked_at: Tensor, course: Course
) -> tuple[Went | None, tuple[Went, ...], Went | None]:
    """Train the end and then blocks on ids `alone`, and then the whole on `learnt`, in place."""
    parts = len(language.blocks) + bool(language.parts[-1].matrices)
    course.total = parts * course.steps(len(alone), course.training.block_epochs)
    course.total += course.steps(len(learnt), course.training.epochs)
    end: Went | None = None
    blocks: tuple[Went, ...] = ()
    states: Tensor | None = None
    if course.training.block_epochs:
        costs = felt(language, alone[:: -(-len(alone) // FELT)], progress=course.progress)
        with torch.no_grad():
            states = torch.cat([language.full_states(some) for some in torch.split(alone, AT_ONCE)])
        end = train_end(language, alone, looked_at, course, states=states, felt=costs[0])
        with torch.no_grad():
            for held, some in zip(torch.split(states, AT_ONCE), torch.split(alone, AT_ONCE), strict=True):
                held.copy_(language.embedded_in_full(some))
        blocks = tuple(train_blocks(language, alone, looked_at, course, targets=states, felt=costs[1:]))
        states = states if len(alone) == len(learnt) else None
    whole = train_whole(language, learnt, looked_at, course, states) if course.training.epochs else None
    return end, blocks, whole


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """Sequences to learn from, those that choose the best stretch, and those that judge in the end (or none).

    places  of those that judge among all that were kept back
    """

    learnt: TokenIds
    looked_at: TokenIds
    judging: TokenIds
    places: npt.NDArray[np.int64]


def check_sequences(text: Sequences, *, is_proved: bool) -> None:
    """Raise SchemeError before any work where there are too few sequences to learn from, to choose and to judge by."""
    _texts(text, is_proved=is_proved)


def _texts(text: Sequences, *, is_proved: bool) -> _Texts:
    """Split the sequences.

    What training starts from was calibrated on the first: there it looks better than it is, and a stretch that gains
    could lose against it. So those that choose are half of what was kept back from it, where anything was.
    """
    taken, unseen = divided(text) if is_proved else (text, text.ids[:0])
    if len(unseen) >= 2 * LOOKED_AT[0]:
        choosing, places = _apart(len(unseen), min(len(unseen) // 2, LOOKED_AT[1]))
        return _Texts(taken.ids, unseen[choosing], unseen[places], places)
    count = len(taken.ids)
    back = min(max(count // 16, LOOKED_AT[0]), LOOKED_AT[1], count // 2)
    choosing, others = _apart(count, back)
    if not len(others) or not back:
        raise SchemeError(
            f"{QAT} needs sequences to learn from and others to look at, there are {len(text.ids)}: give more "
            "(--calibration-sequences)"
        )
    return _Texts(taken.ids[others], taken.ids[choosing], unseen, np.arange(len(unseen)))


def _apart(total: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return so many of the places below `total`, evenly spread, and the others."""
    places = np.linspace(0, total - 1, 2 * count + 1).round().astype(np.int64)[1::2]
    return places, np.setdiff1d(np.arange(total), places)


def _digest(*parts: TokenIds) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


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


def _divergence(language: Language, weights: Mapping[str, Tensor], ids: Tensor) -> Divergence:
    """Return the divergence from full precision of every sequence."""
    weights = {name: values.to(language.device) for name, values in weights.items()}
    found, same = [], []
    for row in ids:
        targets = np.ascontiguousarray(row[1:].numpy(), dtype=np.int32)
        full, ours = (_rows(logits(weights, row[None])) for logits in (language.full_logits, language.logits))
        compared = compare_logits(full, ours, targets)
        found.append(float(compared.divergence.mean()))
        same.append(float(compared.same_top.mean()))
    return Divergence(np.array(found), np.array(same), ids[:, 1:].numel())


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
