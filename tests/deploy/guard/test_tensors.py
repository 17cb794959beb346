"""Tensors of one answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.guard import Finding, Limits, judge_tensors

INPUTS = {"x": np.arange(8.0).reshape(4, 2)}


def scores(rows: int = 4) -> Any:
    """Scores of classes, each row sure of another."""
    return np.eye(5, dtype=np.float32)[:rows] * 9


def names(findings: tuple[Finding, ...]) -> list[tuple[str, Any, float]]:
    """What was found, where, and how much."""
    return [(finding.sentinel, finding.place, finding.value) for finding in findings]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_are_none_are_counted_by_tensor(dtype: Any) -> None:
    bad = scores().astype(dtype)
    bad[1, 2], bad[0, 0], bad[3, 3] = np.nan, np.inf, -np.inf
    assert names(judge_tensors({"a": scores(), "b": bad}, inputs=INPUTS, scores=("b",))) == [("bad_number", "b", 3)]


def test_a_sound_answer_has_no_findings() -> None:
    outputs = {"y": scores(), "label": np.zeros(4, np.int64), "empty": np.zeros((0, 3)), "one": np.float32(2)}
    assert judge_tensors({k: np.asarray(v) for k, v in outputs.items()}, inputs=INPUTS, scores=("y",)) == ()


def test_an_output_that_is_the_same_for_inputs_that_differ_is_a_fault() -> None:
    same = np.tile(scores(1), (4, 1))
    assert names(judge_tensors({"y": same}, inputs=INPUTS)) == [("constant_output", "y", 0)]
    assert judge_tensors({"y": same}) == ()
    assert judge_tensors({"y": same}, inputs={"x": np.ones((4, 2))}) == ()
    assert judge_tensors({"y": same}, inputs={"x": INPUTS["x"] % 3}) == ()  # three differ
    assert judge_tensors({"y": same[:3]}, inputs={"x": INPUTS["x"][:3]}) == ()
    assert judge_tensors({"y": np.zeros((4, 1))}, inputs=INPUTS) == ()
    assert names(judge_tensors({"y": np.zeros((4, 2))}, inputs=INPUTS)) == [("constant_output", "y", 0)]


def test_inputs_differ_where_any_of_them_does() -> None:
    same, mask = np.tile(scores(1), (4, 1)), np.ones((4, 3))
    assert judge_tensors({"y": same}, inputs={"mask": mask, **INPUTS}) != ()
    assert judge_tensors({"y": same}, inputs={"scale": np.asarray(1.0), "mask": mask}) == ()


def test_a_spread_may_be_allowed() -> None:
    near = np.tile(scores(1), (4, 1)) + np.arange(4)[:, None] * 1e-5
    assert judge_tensors({"y": near}, inputs=INPUTS) == ()
    findings = judge_tensors({"y": near}, inputs=INPUTS, limits=Limits(constant_spread=1e-4))
    assert findings[0].sentinel == "constant_output"
    assert 0 < findings[0].value < 1e-4


def test_scores_that_prefer_nothing_are_a_fault_and_hardly_a_hint() -> None:
    flat = scores()
    flat[2] = 0.25
    assert names(judge_tensors({"y": flat}, scores=("y",))) == [("flat_scores", "y", 1)]
    assert judge_tensors({"y": flat}) == ()
    near = scores()
    near[1, 4] = 8.99
    (finding,) = judge_tensors({"y": near}, scores=("y",))
    assert (finding.sentinel, finding.severity) == ("low_margin", "hint")
    assert finding.value == pytest.approx((np.exp(9) - np.exp(8.99)) / (np.exp(9) + np.exp(8.99) + 3), rel=1e-4)


def test_probabilities_are_taken_as_they_are() -> None:
    (finding,) = judge_tensors({"y": np.asarray([[0.52, 0.48], [0.9, 0.1]])}, scores=("y",))
    assert finding.value == pytest.approx(0.04)
    assert judge_tensors({"y": np.asarray([[0.52, 0.48]])}, scores=("y",), limits=Limits(score_margin=0.03)) == ()


def test_large_numbers_do_not_overflow() -> None:
    large = np.asarray([[60000.0, -60000.0]], np.float16)
    assert judge_tensors({"y": large}, scores=("y",)) == ()


def test_nothing_is_written_to() -> None:
    outputs = scores()
    outputs.setflags(write=False)
    judge_tensors({"y": outputs}, inputs=INPUTS, scores=("y",))


def test_scores_that_are_no_output_are_refused() -> None:
    with pytest.raises(SchemeError, match="no output is called 'z'; there are y"):
        judge_tensors({"y": scores()}, scores=("z",))
