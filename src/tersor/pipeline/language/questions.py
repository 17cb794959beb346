"""Questions with given answers, put to both models side by side."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from tersor.core.errors import SchemeError
from tersor.evaluation.language.choices import Question, measure_choices, read_questions, requests_of, scores
from tersor.evaluation.language.comparison import Progress
from tersor.evaluation.language.streams import Subject, shared_vocabulary
from tersor.files.hashing import sha256
from tersor.pipeline.language.findings import Findings
from tersor.pipeline.language.references import Reference
from tersor.pipeline.steps.stages import run_ahead

__all__ = ["compare_on_questions"]


def compare_on_questions(
    subject: Subject,
    reference: Reference,
    path: Path,
    *,
    context: int,
    limit: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Let both models answer the questions of `path`; `limit` of them: the first, or with `seed` a random subset."""
    if reference.scorer is None:
        raise SchemeError("questions need the reference model itself; a stored reference knows its own text only")
    questions = _chosen(read_questions(path), limit, seed)
    vocabulary = shared_vocabulary(reference.vocabulary, subject.vocabulary_size)

    def tokenize(text: str) -> list[int]:
        ids = subject.tokenize(text, add_special=True)
        return ids[:-1] if subject.adds_end else ids

    requests = requests_of(questions, tokenize, context)
    both: tuple[list[list[float]], list[list[float]]] = ([], [])
    left = run_ahead(scores(reference.scorer, requests, vocabulary), depth=8)
    right = run_ahead(scores(subject, requests, vocabulary), depth=8)
    with closing(left), closing(right):
        for wanted, found in zip(left, right, strict=True):
            both[0].append(wanted)
            both[1].append(found)
            if progress is not None:
                progress("answering", len(both[0]), len(questions))
    metrics, samples = measure_choices(questions, *both)
    return Findings(
        task="choice",
        data=path.name,
        data_sha256=sha256(path),
        metrics=metrics,
        settings={
            "questions": len(questions),
            "context": context,
            "normalized_by": "characters of the answer",
            **({} if seed is None else {"seed": seed}),
        },
        samples=samples,
        notes=reference.notes,
    )


def _chosen(questions: list[Question], limit: int | None, seed: int | None) -> list[Question]:
    if limit is None or seed is None or limit >= len(questions):
        return questions[:limit]
    indices = np.random.default_rng(seed).choice(len(questions), limit, replace=False)
    return [questions[index] for index in sorted(indices.tolist())]
