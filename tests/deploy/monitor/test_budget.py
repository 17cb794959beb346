"""Benjamini–Hochberg against scipy, and what a budget of false alarms keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.monitor import FalseAlarmBudget, adjusted_p_values, alarming

stats: Any = pytest.importorskip("scipy.stats")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@example([0.01, 0.01, 0.5])
@example([0.0, 1.0])
def test_adjusted_p_values_are_those_of_scipy(p_values: list[float]) -> None:
    assert adjusted_p_values(p_values) == pytest.approx(stats.false_discovery_control(p_values), abs=1e-12)


def test_a_month_without_drift_has_as_many_alarms_as_the_budget_says() -> None:
    rng, budget, months = np.random.default_rng(1), FalseAlarmBudget(alarms=2), 60
    alarms = 0
    for _ in range(months * 720):
        p_values = rng.random(20)
        alarms += bool(p_values.min() <= budget.level and (adjusted_p_values(p_values) <= budget.level).any())
    assert 1.5 < alarms / months < 2.5


def test_features_that_drifted_are_named_in_order() -> None:
    p_values = {"a": 0.5, "b": 1e-5, "c": 1e-7, "d": 0.01}
    assert alarming(p_values, FalseAlarmBudget()) == ("c", "b")
    assert alarming({}, FalseAlarmBudget()) == ()


def test_draws_are_fine_enough_for_one_feature_among_many() -> None:
    budget = FalseAlarmBudget()
    finest = 2 / (budget.draws(50) + 1)
    assert alarming({f"f{i}": finest if i == 0 else 0.9 for i in range(50)}, budget) == ("f0",)


def test_bad_input_is_refused() -> None:
    for wrong in ((0.0, 100.0, 1.0), (1.0, 10.0, 10.0), (1.0, float("inf"), 1.0)):
        with pytest.raises(SchemeError, match="fewer alarms than windows are accepted"):
            FalseAlarmBudget(*wrong)
    for p_values in ([1.5], [float("nan")], [[0.1]]):
        with pytest.raises(ShapeError, match="one row of p-values"):
            adjusted_p_values(p_values)
