"""Questions with given answers, from JSON lines: the model's choice is the answer that it finds likeliest.

Two scores, as lm-evaluation-harness has them: the sum of the log-probabilities of the answer's tokens (its `acc`), and
that sum divided by the length of the answer in characters (its `acc_norm`), which is the one that counts here: long
answers are not at a loss for being long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError, UnsupportedError
from tersor.core.evaluation import Metric, Sample
from tersor.evaluation.language.reading import read_whole
from tersor.evaluation.language.streams import Scorer, rows_at_once
from tersor.evaluation.language.windows import Int32Array
from tersor.evaluation.paired import Pairs, paired_difference_interval
from tersor.evaluation.statistics import Interval, proportion_interval
from tersor.kernels.logits import token_losses

__all__ = ["Question", "Request", "measure_choices", "read_questions", "requests_of", "scores"]

SHOWN = 10
_TAG = re.compile(r"\[.*?\]")


@dataclass(frozen=True, slots=True)
class Question:
    """What the model reads, the answers that may follow (with their leading space), and which one is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to score: tokens to read, where its predictions begin, and its tokens."""

    ids: tuple[int, ...]
    start: int
    targets: tuple[int, ...]


def read_questions(path: Path) -> list[Question]:
    """Read a file of one JSON object a line, each in one of three forms.

    {"context", "choices", "answer"}      taken as they are; answer is the index of the right choice
    {"ctx", "endings", "label"}           HellaSwag, with its tags removed
    {"question", "choices", "answerKey"}  ARC: choices are {"text": […], "label": […]}

    Raises FormatError with the line that is none of these.
    """
    questions = []
    for number, line in enumerate(read_whole(path).splitlines(), 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line)))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise FormatError(f"{path}, line {number}: no question ({type(error).__name__}: {error})") from error
    if not questions:
        raise FormatError(f"{path}: holds no question")
    return questions


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise TypeError("an object is needed")
    if "endings" in row:
        return _checked(_story(row), [" " + _clean(_text(ending)) for ending in row["endings"]], int(row["label"]))
    if "answerKey" in row:
        labels = [_text(label) for label in row["choices"]["label"]]
        context = f"Question: {_text(row['question'])}\nAnswer:"
        return _checked(
            context, [" " + _text(text) for text in row["choices"]["text"]], labels.index(_text(row["answerKey"]))
        )
    return _checked(_text(row["context"]), [_text(choice) for choice in row["choices"]], row["answer"])


def _story(row: Mapping[str, Any]) -> str:
    """HellaSwag's question as lm-evaluation-harness puts it: the second half begins with a capital."""
    has_halves = "ctx_a" in row and "ctx_b" in row
    context = f"{_text(row['ctx_a'])} {_text(row['ctx_b']).capitalize()}" if has_halves else _text(row["ctx"])
    return _clean(f"{_text(row['activity_label'])}: {context}" if row.get("activity_label") else context)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is needed, got {type(value).__name__}")
    return value


def _checked(context: str, choices: Sequence[str], answer: object) -> Question:
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"answer must be an index of the {len(choices)} choices, got {answer!r}")
    if len(choices) < 2 or not all(choices):
        raise ValueError("at least two choices are needed, none of them empty")
    return Question(context, tuple(choices), answer)


def _clean(text: str) -> str:
    """HellaSwag's WikiHow part holds marks such as [title], which lm-evaluation-harness takes out."""
    return _TAG.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def requests_of(
    questions: Sequence[Question], tokenize: Callable[[str], Sequence[int]], context: int
) -> list[list[Request]]:
    """One list of requests a question. Spaces at the end of the context go to the answer, as tokenizers want it;
    what is longer than `context` tokens loses its beginning.
    """
    made = []
    for question in questions:
        stem = question.context.rstrip()
        gap = question.context[len(stem) :]
        before = list(tokenize(stem))
        made.append([_request(before, list(tokenize(stem + gap + choice)), context) for choice in question.choices])
    return made


def _request(before: list[int], whole: list[int], context: int) -> Request:
    split = next((at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    split = min(split, len(whole) - 1)  # an answer that melts into the question keeps a token of its own
    if split < 1:
        raise UnsupportedError("a question without text cannot be scored by a model without a beginning token")
    ids, targets = whole[:-1], whole[split:]
    surplus = max(0, len(ids) - context)
    if len(targets) > context:
        raise UnsupportedError(f"an answer of {len(targets)} tokens does not fit a context of {context}")
    return Request(tuple(ids[surplus:]), split - 1 - surplus, tuple(targets))


def scores(scorer: Scorer, requests: Sequence[Sequence[Request]], vocabulary: int) -> Iterator[list[float]]:
    """Yield for each question the log-probability of each answer, nats."""
    rows = rows_at_once(vocabulary)
    for answers in requests:
        yield [_log_probability(scorer, request, vocabulary, rows) for request in answers]


def _log_probability(scorer: Scorer, request: Request, vocabulary: int, rows: int) -> float:
    targets: Int32Array = np.array(request.targets, np.int32)
    total, done = 0.0, 0
    for values in scorer.slices(request.ids, start=request.start, rows=rows):
        losses = token_losses(values[:, :vocabulary], targets[done : done + len(values)])
        total -= float(losses.sum())
        done += len(values)
    return total


def measure_choices(
    questions: Sequence[Question], reference: Sequence[Sequence[float]], subject: Sequence[Sequence[float]]
) -> tuple[tuple[Metric, ...], tuple[Sample, ...]]:
    """Metrics from the scores of both models, the unit being the question, and questions that they answer otherwise."""
    right = np.array([question.answer for question in questions])
    sizes = [np.array([max(1, len(choice.strip())) for choice in question.choices]) for question in questions]
    picks = {
        name: np.array([_best(score, size if is_normal else None) for score, size in zip(values, sizes, strict=True)])
        for name, values, is_normal in (
            ("subject", subject, True), ("reference", reference, True),
            ("subject_raw", subject, False), ("reference_raw", reference, False),
        )
    }  # fmt: skip
    correct = {name: pick == right for name, pick in picks.items()}
    metrics = (
        _share("accuracy", correct["subject"]),
        _share("reference_accuracy", correct["reference"]),
        _metric("accuracy_drop", paired_difference_interval(Pairs.of(correct["reference"], correct["subject"]))),
        _share("agreement", picks["subject"] == picks["reference"]),
        _share("accuracy_raw", correct["subject_raw"]),
        _share("reference_accuracy_raw", correct["reference_raw"]),
    )
    return metrics, _samples(questions, picks, reference, subject)


def _best(score: Sequence[float], sizes: npt.NDArray[np.int64] | None) -> int:
    return int(np.argmax(np.array(score) if sizes is None else np.array(score) / sizes))


def _share(name: str, values: npt.NDArray[np.bool_]) -> Metric:
    return _metric(name, proportion_interval(values))


def _metric(name: str, interval: Interval) -> Metric:
    return Metric(name, interval.value, "", max(interval.low, -1.0), min(interval.high, 1.0), interval.units)


def _samples(
    questions: Sequence[Question],
    picks: Mapping[str, npt.NDArray[np.int64]],
    reference: Sequence[Sequence[float]],
    subject: Sequence[Sequence[float]],
) -> tuple[Sample, ...]:
    """The questions on which the models part most: by how much each prefers its own choice to the other's."""
    found = []
    for index in np.flatnonzero(picks["subject"] != picks["reference"]).tolist():
        question, wanted, got = questions[index], int(picks["reference"][index]), int(picks["subject"][index])
        gap = (reference[index][wanted] - reference[index][got]) + (subject[index][got] - subject[index][wanted])
        right = question.choices[question.answer].strip()
        detail = f"reference: {question.choices[wanted].strip()!r}; right: {right!r}"
        found.append(Sample(question.context[-400:], question.choices[got].strip(), "", gap, detail))
    return tuple(sorted(found, key=lambda sample: -sample.value)[:SHOWN])
