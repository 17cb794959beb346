"""Calibrated confidence against scikit-learn, and estimated accuracy against the labels that it never saw."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from tersor.core.errors import SchemeError, ShapeError
from tersor.core.records import plain, read_record
from tersor.deploy.monitor import Calibration, estimated_accuracy, isotonic

Array = npt.NDArray[Any]

PAIRS = st.lists(st.tuples(st.integers(-20, 20).map(float), st.integers(1, 9).map(float)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_isotonic_regression_is_that_of_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    values, weights = map(np.array, zip(*pairs, strict=True))
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)
    assert isotonic(values, weights) == pytest.approx(expected, abs=1e-9)


def overconfident(rng: np.random.Generator, number: int, ease: float) -> tuple[Array, Array]:
    """Confidences, and whether each answer was right; right less often than the model thinks."""
    confidences = rng.beta(ease, 1.5, number)
    return confidences, rng.random(number) < 0.2 + 0.6 * confidences**2


def test_calibration_is_that_of_scikit_learn_between_and_beyond_the_sample_too() -> None:
    rng = np.random.default_rng(1)
    scores, right = overconfident(rng, 800, 2)
    scores = scores.round(2)
    calibration = Calibration.fit(scores, right)
    other = IsotonicRegression(out_of_bounds="clip").fit(scores, right)
    for asked in (scores, rng.random(500)):
        assert calibration.apply(asked) == pytest.approx(other.predict(asked), abs=1e-9)
    assert sum(calibration.counts) == 800


def test_every_confidence_lies_in_its_block() -> None:
    calibration = Calibration((0.1, 0.5), (0.3, 0.9), (0.2, 0.8), (30, 70))
    assert calibration.block([0.0, 0.1, 0.3, 0.39, 0.41, 0.9, 1.0]).tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("ease", [1.0, 2.0, 4.0])
def test_the_interval_holds_the_accuracy_when_inputs_become_harder_or_easier(ease: float) -> None:
    """Calibrated at ease 2; 95 % are promised, and the shape of isotonic steps costs or gains a little."""
    rng, covered, runs = np.random.default_rng(2), 0, 300
    for _ in range(runs):
        calibration = Calibration.fit(*overconfident(rng, 1000, 2.0))
        confidences, right = overconfident(rng, 500, ease)
        found = estimated_accuracy(calibration, confidences)
        covered += found.low <= right.mean() <= found.high
    assert covered / runs > 0.92


def test_confidence_as_it_is_would_be_far_off() -> None:
    rng = np.random.default_rng(3)
    calibration = Calibration.fit(*overconfident(rng, 3000, 2.0))
    confidences, right = overconfident(rng, 3000, 4.0)
    assert abs(estimated_accuracy(calibration, confidences).value - right.mean()) < 0.03
    assert abs(confidences.mean() - right.mean()) > 0.1


def test_it_is_blind_where_right_answers_change() -> None:
    """What the page says it cannot see: the same confidences, other right answers."""
    rng = np.random.default_rng(4)
    calibration = Calibration.fit(*overconfident(rng, 3000, 2.0))
    confidences, right = overconfident(rng, 3000, 2.0)
    found = estimated_accuracy(calibration, confidences)
    assert not found.low <= (~right).mean() <= found.high


def test_a_calibration_is_stored_and_read_to_the_last_bit() -> None:
    calibration = Calibration.fit(*overconfident(np.random.default_rng(5), 300, 2.0))
    assert read_record(Calibration, json.loads(json.dumps(plain(calibration))), "calibration") == calibration


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="50 requests or more, each right or wrong"):
        Calibration.fit([0.5] * 10, [1] * 10)
    with pytest.raises(ShapeError, match="each right or wrong"):
        Calibration.fit([0.5] * 60, [0.5] * 60)
    calibration = Calibration((0.5,), (0.9,), (0.7,), (100,))
    for confidences in ([], [1.1], [math.nan]):
        with pytest.raises(ShapeError, match="confidences are one row of numbers in 0 … 1"):
            estimated_accuracy(calibration, confidences)
    with pytest.raises(SchemeError, match=r"such as 0\.95, got 95"):
        estimated_accuracy(calibration, [0.5], confidence=95)
    with pytest.raises(SchemeError, match="as many ends, shares and counts as blocks"):
        Calibration((0.5,), (), (0.7,), (100,))
    for lows, shares, counts in (((0.95,), (0.7,), (9,)), ((0.5,), (1.7,), (9,)), ((0.5,), (0.7,), (0,))):
        with pytest.raises(SchemeError, match="rise and lie in 0 … 1"):
            Calibration(lows, (0.9,), shares, counts)
