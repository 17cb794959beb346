"""Questions: the rows of the known benchmarks, tokens of the answers, and metrics computed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError, UnsupportedError
from tersor.evaluation.language.choices import Question, Request, measure_choices, read_questions, requests_of, scores
from tersor.evaluation.language.demands import judged


def written(folder: Path, *rows: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_plain_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, {"context": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1})
    assert read_questions(path) == [Question("2 + 2 =", (" 3", " 4"), 1)]


def test_hellaswag_rows_become_what_lm_evaluation_harness_makes_of_them(tmp_path: Path) -> None:
    row = {
        "ind": 4,
        "activity_label": "Removing ice",
        "ctx_a": "A man [header] sits.",
        "ctx_b": "he",
        "ctx": "A man [header] sits. he",
        "endings": ["runs [title] away", " scrapes"],
        "label": "1",
    }
    (question,) = read_questions(written(tmp_path, row))
    assert question == Question("Removing ice: A man sits. He", (" runs. away", " scrapes"), 1)
    del row["ctx_a"]
    (question,) = read_questions(written(tmp_path, row))
    assert question.context == "Removing ice: A man sits. he"


def test_arc_rows_find_their_answer_by_its_label(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": {"text": ["ash", "bee"], "label": ["1", "2"]}, "answerKey": "2"}
    (question,) = read_questions(written(tmp_path, row))
    assert question == Question("Question: Which?\nAnswer:", (" ash", " bee"), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "line 3: no question .TypeError: an object is needed"),
        ({"context": "a"}, "line 3: no question .KeyError: 'choices'"),
        ({"context": "a", "choices": ["b", "c"], "answer": 2}, "answer must be an index of the 2 choices, got 2"),
        ({"context": "a", "choices": ["b", "c"], "answer": True}, "got True"),
        ({"context": "a", "choices": ["b"], "answer": 0}, "at least two choices are needed"),
        ({"context": "a", "choices": ["b", ""], "answer": 0}, "none of them empty"),
        ({"context": "a", "choices": ["b", 5], "answer": 0}, "text is needed, got int"),
        ({"ctx": "a", "endings": ["b", "c"], "label": ""}, "invalid literal for int"),
        ({"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "B"}, "not in list"),
    ],
)
def test_lines_that_are_no_question_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_questions(written(tmp_path, {"context": "a", "choices": ["b", "c"], "answer": 0}, row))


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no question"):
        read_questions(written(tmp_path))
    path = tmp_path / "broken.jsonl"
    path.write_text("{")
    with pytest.raises(FormatError, match="line 1: no question"):
        read_questions(path)
    with pytest.raises(MissingError, match="cannot be read"):
        read_questions(tmp_path)


def letters(text: str) -> list[int]:
    """A tokenizer: 0 for the beginning, one token a letter, but "ab" is one."""
    return [0, *(ord(letter) for letter in text.replace("ab", "\x07"))]


def test_requests_score_the_tokens_of_the_answer_alone() -> None:
    ((first, second),) = requests_of([Question("xy", (" c", "de"), 0)], letters, 100)
    assert first == Request((0, 120, 121, 32), 2, (32, 99))
    assert second == Request((0, 120, 121, 100), 2, (100, 101))


def test_spaces_at_the_end_of_the_question_belong_to_the_answer() -> None:
    ((request, _),) = requests_of([Question("x ", ("c", "d"), 0)], letters, 100)
    assert request == Request((0, 120, 32), 1, (32, 99))


def test_an_answer_that_melts_into_the_question_is_scored_from_where_tokens_differ() -> None:
    ((request, _),) = requests_of([Question("xa", ("b", "c"), 0)], letters, 100)
    assert request == Request((0, 120), 1, (7,))


def test_long_questions_lose_their_beginning() -> None:
    ((request, _),) = requests_of([Question("vwxyz", ("cd", "ef"), 0)], letters, 3)
    assert request == Request((121, 122, 99), 1, (99, 100))
    with pytest.raises(UnsupportedError, match="an answer of 5 tokens does not fit a context of 4"):
        requests_of([Question("x", ("cdefg", "h"), 0)], letters, 4)
    with pytest.raises(UnsupportedError, match="a question without text"):
        requests_of([Question("", ("c", "d"), 0)], lambda text: letters(text)[1:], 4)


class Table:
    """A model whose next token depends on the last one alone."""

    vocabulary_size = 4

    def __init__(self) -> None:
        self.probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0.7, 0.1, 0.1, 0.1]])

    def slices(self, ids: Sequence[int], *, start: int = 0, rows: int = 512, batch: int = 0) -> Iterator[Float32]:
        for begin in range(start, len(ids), 1):
            yield np.log(self.probabilities[[ids[begin]]]).astype(np.float32)

    def version(self) -> str:
        return "table"


def test_scores_are_the_sums_of_log_probabilities() -> None:
    requests = [[Request((0, 1, 3), 1, (3, 0)), Request((0, 1), 1, (2,))]]
    ((first, second),) = scores(Table(), requests, 4)
    assert first == pytest.approx(np.log(0.1 * 0.7), rel=1e-6)
    assert second == pytest.approx(np.log(0.2), rel=1e-6)


def test_few_questions_without_a_change_prove_no_drop_of_0() -> None:
    questions, scored = [Question("q", (" a", " b"), 0)] * 20, [[0.0, -1.0]] * 20
    metrics, _ = measure_choices(questions, scored, scored)
    drop = next(metric for metric in metrics if metric.name == "accuracy_drop")
    assert drop.value == 0
    assert drop.high == pytest.approx(0.161, abs=1e-3)
    assert drop.low == pytest.approx(-0.161, abs=1e-3)
    (limit,) = judged(metrics, {"max_accuracy_drop": 0.01})
    assert limit.outcome == "inconclusive"


def test_metrics_are_those_computed_by_hand() -> None:
    questions = [Question("q", (" a", " bbbb"), 1), Question("q", (" aa", " b"), 0), Question("q", (" a", " b"), 1)]
    reference = [[-1.0, -3.0], [-4.0, -1.0], [-1.0, -2.0]]  # a letter: -1 -.75 | -2 -1 | -1 -2
    subject = [[-1.0, -5.0], [-1.0, -1.0], [-2.0, -1.0]]  # a letter: -1 -1.25 | -.5 -1 | -2 -1
    metrics, samples = measure_choices(questions, reference, subject)
    found = {metric.name: metric.value for metric in metrics}
    assert found["reference_accuracy"] == pytest.approx(1 / 3)  # picks 1, 1, 0
    assert found["accuracy"] == pytest.approx(2 / 3)  # picks 0, 0, 1
    assert found["agreement"] == 0
    assert found["accuracy_drop"] == pytest.approx(-1 / 3)
    assert found["reference_accuracy_raw"] == pytest.approx(0)  # picks 0, 1, 0
    assert found["accuracy_raw"] == pytest.approx(2 / 3)  # picks 0, 0, 1
    assert all(metric.low is not None and metric.high is not None for metric in metrics)
    assert [sample.value for sample in samples] == sorted((sample.value for sample in samples), reverse=True)
    assert len(samples) == 3
    assert samples[0].detail == "reference: 'b'; right: 'aa'"
