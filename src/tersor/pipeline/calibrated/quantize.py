"""Quantize with a method that knows the data, into a GGUF or a checkpoint for other engines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

import numpy as np

from tersor.calibrate.ranks import Ranks, open_ranks
from tersor.calibrate.sequences import Sequences
from tersor.calibrate.text import BUILT_IN
from tersor.containers.hf.table import container, format_for
from tersor.containers.hf.writer import check_output
from tersor.containers.imatrix import Importances, read_imatrix, write_imatrix
from tersor.core.arrays import Float32
from tersor.core.card import Card, TensorError
from tersor.core.errors import QualityError, SchemeError
from tersor.core.evaluation import HELD_OUT, Evaluation, Metric
from tersor.core.plan import Plan
from tersor.decoder import Decoder
from tersor.files.atomic import check_file
from tersor.formats import get
from tersor.models.model import Model
from tersor.pipeline import quantize as plainly
from tersor.pipeline.calibrated.checkpoint import plan_checkpoint, write_quantized
from tersor.pipeline.calibrated.held_out import Gain
from tersor.pipeline.calibrated.rewrites import ROTATION, parse_method, split_rotation
from tersor.pipeline.calibrated.rotated import rotated
from tersor.pipeline.calibrated.run import Calibration, Prepared, Run, prepare, read_sequences
from tersor.pipeline.calibrated.statistics import open_statistics
from tersor.pipeline.calibrated.training.memory import plan_training
from tersor.pipeline.calibrated.training.result import Report, check_sequences, train_prepared
from tersor.pipeline.calibrated.training.settings import Training, check_train, check_training, split_training
from tersor.pipeline.steps.planning import Choices, Importance, make_plan

__all__ = ["AS_IT_WILL", "IMATRIX", "How", "importance_from", "quantize_calibrated"]

AS_IT_WILL = "llama.cpp rounds activations as it will: a GGUF cannot ask for it"
IMATRIX = "imatrix.gguf"
"""What an importance matrix in a folder would be called."""
LEAST_PROVED = 2
"""Sequences of which one can be kept back."""


@dataclass(frozen=True, slots=True)
class How:
    """How to go about it; method, calibration, statistics, training and train shape the bytes.

    method        a key of METHODS, or rewrites before one: "awq+gptq", "hadamard+best"; "qat" behind either trains on
    calibration   the text; None: the built-in one
    statistics    saved sums of `tersor calibrate`, taken instead of a text
    container     "gguf", or a key of CONTAINERS: then the output is a checkpoint folder
    activations   engines shall round activations to 8 bits too, token by token: compressed-tensors of 8 bits only
    resume        refuse to begin anew: unfinished work beside the output must be of the same run. Without it, work of
                  the same run is gone on with, too, and any other is removed
    force         write the artefact even if plain rounding would be better
    proof         measure the gain on sequences that are kept back
    save_imatrix  write what was seen as an importance matrix for llama.cpp too
    device        of torch
    training      how to train where the method says so; None: the usual way
    train         text that training alone learns from, beside that of the calibration, in sequences as long as those
    tell          is told the plan of memory before anything runs
    """

    method: str = "best"
    calibration: Calibration | None = None
    statistics: Path | None = None
    container: str = "gguf"
    activations: bool = False
    resume: bool = False
    force: bool = False
    proof: bool = True
    save_imatrix: Path | None = None
    device: str = "cpu"
    training: Training | None = None
    train: Calibration | None = None
    threads: int = 0
    split_max_bytes: int | None = None
    split_max_tensors: int | None = None
    command: str = ""
    progress: Callable[[str, int, int], None] | None = None
    tell: Callable[[str], None] | None = None


def quantize_calibrated(
    model: Model,
    format: str,  # noqa: A002 (the word of the command line)
    output: Path,
    how: How,
    **choices: Unpack[Choices],
) -> Card | None:
    """Calibrate, quantize and write; return the Card, None in every rank but the first.

    Raises QualityError where the result would be worse than plain rounding on held-out text, and what `prepare` and
    the writers raise; the finished blocks are kept then.
    """
    check_train(how.method, how.train)
    is_turned, method = split_rotation(split_training(how.method)[1])
    parse_method(method)  # an unknown one ends here, before any text is read
    if is_turned:
        if how.container != "gguf":
            raise SchemeError(f"{ROTATION} mixes the rows of the checkpoint's tensors: it is written as GGUF only")
        model = rotated(model)
    calibration = how.calibration or Calibration()
    with open_ranks(how.device) as ranks:
        return _in_ranks(model, format, output, how=how, calibration=calibration, ranks=ranks, choices=choices)


def _in_ranks(
    model: Model, name: str, output: Path, *, how: How, calibration: Calibration, ranks: Ranks, choices: Choices
) -> Card | None:
    statistics = None if how.statistics is None else open_statistics(how.statistics, model)
    text = read_sequences(model, calibration) if statistics is None else statistics.sequences
    count, length = text.ids.shape
    learnt = None if how.train is None else read_sequences(model, replace(how.train, length=length))
    told = f", seed {calibration.seed}" if calibration.seed else ""
    told = ", saved statistics" if statistics is not None else told
    described = f"{text.corpus}: {count} sequences of {length} tokens{told}, sha256 {text.sha256}"
    choices = Choices(**{**choices, "method": how.method, "calibration": described})
    _check_sequences(text, how)
    is_gguf = how.container == "gguf"
    _check_container(model, name, output, how)
    plan = make_plan(model, name, **choices) if is_gguf else plan_checkpoint(model, name, how.container, choices)
    run = Run(statistics, how.threads, how.resume or None, how.proof, how.progress, how.tell)
    is_trained, method = split_training(how.method)
    training, more = how.training or Training(), text.ids[:0] if learnt is None else learnt.ids
    trained: tuple[str, ...] = ()
    if is_trained:
        check_training(plan, ranks)
        most, decoder = count + len(more), Decoder(model)
        memory = plan_training(model.tensors, decoder, training, sequences=most, length=length, device=ranks.device)
        memory.check(run.tell)
        trained = (f"planned peak memory of training {memory.total / 2**30:.2f} GiB",)
    method = split_rotation(method)[1]  # the model is turned by now, and the plan names the whole
    prepared = prepare(model, plan, output, text=text, method=method, calibration=calibration, ranks=ranks, run=run)
    if learnt is not None:  # the method before training has not read it: what that has made stays, whatever follows
        described += f", and to train on {learnt.corpus}: {len(learnt.ids)} sequences, sha256 {learnt.sha256}"
        choices["calibration"], plan = described, replace(plan, recipe=replace(plan.recipe, calibration=described))
    if not ranks.is_first:
        return None
    report = None
    if is_trained:
        prepared, report = train_prepared(prepared, training, run, more=more, trains_vectors=is_gguf)
    if prepared.gain is not None and prepared.gain.is_worse and not how.force:
        raise QualityError(_worse(prepared.gain, how.method))
    if how.save_imatrix is not None:
        write_imatrix(how.save_imatrix, _importances(prepared))
    noted = text.notes + (() if learnt is None else learnt.notes) + _told(calibration, how) + trained
    findings = _Findings(prepared, noted, how, report)
    if is_gguf:
        card = plainly.quantize(
            model,
            name,
            output,
            threads=how.threads,
            split_max_bytes=how.split_max_bytes,
            split_max_tensors=how.split_max_tensors,
            command=how.command,
            made=findings,
            **choices,
        )
    else:
        card = write_quantized(
            model, plan, output, how.container, findings, activations=how.activations, command=how.command
        )
    prepared.done()
    return card


@dataclass(frozen=True)
class _Findings:
    """What the run adds to the artefact and its Card."""

    prepared: Prepared
    told: tuple[str, ...]
    how: How
    report: Report | None = None

    def rows(self, name: str, start: int, stop: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]] | None:
        """Packed rows, None where the run had nothing to say of that tensor."""
        return self.prepared.rows(name, start, stop) if name in self.prepared.places else None

    def changed(self, quantized: Collection[str]) -> Iterator[tuple[str, Float32]]:
        """Yield what the method changed besides the matrices of `quantized`: name and values, [rows, columns]."""
        for name, layer in self.prepared.places.items():
            if name not in quantized and layer < self.prepared.layers:
                source = self.prepared.visitor.sources[name]
                fmt = self.prepared.format_of(name)
                yield name, fmt.decode(self.prepared.rows(name, 0, source.rows), source.columns)

    def onto(self, card: Card) -> Card:
        """Return the Card with outcomes, gain and times."""
        by_name: dict[str, list[int]] = {}
        for index, outcome in enumerate(self.prepared.outcomes):
            by_name.setdefault(outcome.name, []).append(index)
        errors = tuple(self._error(error, by_name.get(error.name, [])) for error in card.errors)
        gain = self.prepared.gain
        evaluations = (*card.evaluations, *([] if gain is None else [self._evaluation(card, gain)]))
        return replace(card, errors=errors, evaluations=evaluations, notes=(*card.notes, *self._notes(card.plan)))

    def _error(self, error: TensorError, places: list[int]) -> TensorError:
        found = [self.prepared.outcomes[place] for place in places]
        if self.prepared.visitor.rewrites:
            error = replace(error, relative=None)  # it is no longer the same matrix
        if not found:
            return error
        known = [(o.error, o.rtn_error) for o in found if o.error is not None and o.rtn_error is not None]
        mean = np.sqrt(np.mean(np.square(known), axis=0)) if known else (None, None)
        methods = sorted({outcome.method for outcome in found})
        reasons = sorted({outcome.reason for outcome in found} - {""})
        count = sum(1 for outcome in found if outcome.reason)
        note = "; ".join(reasons) + (f" ({count} of {len(found)} experts)" if reasons and len(found) > 1 else "")
        output, plain = (None if value is None else float(value) for value in mean)
        return replace(error, method="+".join(methods), output=output, plain=plain, note=note)

    def _notes(self, plan: Plan) -> list[str]:
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.prepared.seconds.items())
        kept = [outcome for outcome in self.prepared.outcomes if outcome.reason]
        notes = [*self.told, *([] if self.report is None else self.report.notes())]
        notes.append(f"calibration took, in seconds: {seconds}")
        notes.append(f"planned peak memory {self.prepared.memory.total / 2**30:.2f} GiB")
        if kept:
            notes.append(
                f"{len(kept)} of {len(self.prepared.outcomes)} matrices did not take {plan.recipe.method}'s result"
            )
        unseen = [outcome for outcome in self.prepared.outcomes if outcome.expert is not None and not outcome.tokens]
        if unseen:
            notes.append(f"{len(unseen)} expert matrices saw no calibration token and were rounded plainly")
        return notes

    def _evaluation(self, card: Card, gain: Gain) -> Evaluation:
        floor = {"unit": "nats", "units": gain.method.units}
        metrics = (
            Metric("kl_mean", gain.method.value, low=gain.method.low, high=gain.method.high, **floor),  # type: ignore[arg-type]
            Metric("kl_mean_plain_rounding", gain.rtn.value, low=gain.rtn.low, high=gain.rtn.high, **floor),  # type: ignore[arg-type]
            *self._before(),
            Metric("kl_ratio_to_plain_rounding", gain.ratio),
            Metric("top1_agreement", gain.same_top[0]),
            Metric("top1_agreement_plain_rounding", gain.same_top[1]),
        )
        return Evaluation(
            task=HELD_OUT,
            subject=card.name,
            subject_sha256=card.artefacts[0].sha256 if card.artefacts else "",
            reference=card.name,
            data=self.prepared.text.corpus,
            data_sha256=self.prepared.text.sha256,
            engines={"subject": "tersor in torch, float32", "reference": "tersor in torch, float32"},
            settings={"sequences": gain.method.units, "tokens": gain.tokens, "method": self.how.method},
            metrics=metrics,
            notes=("sequences of the calibration text that no method has seen; plain rounding is importance-weighted",),
            versions=card.versions,
            command=self.how.command,
            date=datetime.now(UTC).date().isoformat(),
        )

    def _before(self) -> list[Metric]:
        """What training started from, if it was trained."""
        if self.report is None:
            return []
        start = self.report.start
        name, floor = "kl_mean_before_training", {"unit": "nats", "units": start.units}
        return [Metric(name, start.value, low=start.low, high=start.high, **floor)]  # type: ignore[arg-type]


def _check_sequences(text: Sequences, how: How) -> None:
    """Refuse before calibration too few sequences for what is kept back from it."""
    if how.proof and len(text.ids) < LEAST_PROVED:
        raise SchemeError(
            f"the proof keeps sequences back that no method sees, and {text.corpus} gives {len(text.ids)}: give at "
            f"least {LEAST_PROVED} (--calibration-sequences), or --no-proof"
        )
    if split_training(how.method)[0]:
        check_sequences(text, is_proved=how.proof)


def _check_container(model: Model, name: str, output: Path, how: How) -> None:
    """Refuse before calibration what the container, or the importance matrix, would be refused for after it."""
    where = how.container
    if how.save_imatrix is not None:
        check_file(how.save_imatrix, model.files, IMATRIX)
    if how.activations and where == "gguf":
        raise SchemeError(AS_IT_WILL)
    if how.activations:
        container(where).settings({"": format_for(where, get(name), "F32")}, (), True)
    if where != "gguf":
        check_output(model.files[0].parent, output)
        return
    if how.split_max_bytes is None and how.split_max_tensors is None:
        check_file(output, model.files)
    plainly.check_name(output)


def _told(calibration: Calibration, how: How) -> tuple[str, ...]:
    told = []
    if how.statistics is None and str(calibration.source) == BUILT_IN:
        told.append(
            "calibrated on the built-in text, Python's reference and source: text like that of your use is better"
        )
    if how.activations:
        told.append("engines round activations to 8 bits as well: no error or gain here knows of that")
    return tuple(told)


def _worse(gain: Gain, method: str) -> str:
    return (
        f"{method} is worse than plain rounding on held-out text: divergence {gain.method.value:.4g} against "
        f"{gain.rtn.value:.4g} nats; nothing was written. Calibrate on text nearer to the model's use, take "
        "--method rtn, or write it all the same with --force (with --resume no work is lost)"
    )


def _importances(prepared: Prepared) -> Importances:
    sums: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    counts: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    found: Mapping[str, Mapping[int | None, tuple[np.ndarray[tuple[int], np.dtype[np.float32]], int]]]
    found = prepared.visitor.importances
    for name, parts in found.items():
        order = sorted(parts, key=lambda expert: -1 if expert is None else expert)
        sums[name] = np.stack([parts[expert][0] for expert in order])
        counts[name] = np.array([parts[expert][1] for expert in order], np.float32)
    count, length = prepared.text.ids.shape
    return Importances(sums, counts, (prepared.text.corpus,), count, length)


def importance_from(path: Path, model: Model) -> Importance:
    """Read an importance file for `model`; entries for tensors that it does not have are a SchemeError.

    llama.cpp keeps no entry for matrices that were never used; those stay without preference.
    """
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    values = read_imatrix(path).values()
    odd = sorted(set(values) - set(shapes))
    if odd:
        raise SchemeError(f"{path}: {odd[0]!r} is no tensor of {model.name}; the file belongs to another model")
    return {name: _by_expert(vector, shapes[name]) for name, vector in values.items()}


def _by_expert(vector: Float32, shape: tuple[int, ...]) -> Float32:
    """Importances of stacked experts as [experts, columns]: llama.cpp's older files hold them in one row."""
    is_row = len(shape) == 3 and vector.shape == (shape[0] * shape[-1],)
    return vector.reshape(shape[0], shape[-1]) if is_row else vector
