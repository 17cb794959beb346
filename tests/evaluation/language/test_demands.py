"""Demands become limits, and nothing passes for want of data."""

from __future__ import annotations

import pytest

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Metric
from tersor.evaluation.language.demands import Demands, check_demands, judged

KL = Metric("kl_mean", 0.01, "nats", 0.008, 0.013, 50, floor=1e-6)
RATIO = Metric("perplexity_ratio", 1.01, "", 1.005, 1.016, 50, floor=1.0)
TOP = Metric("top1_agreement", 0.95, "", 0.94, 0.96, 50, floor=1.0)


@pytest.mark.parametrize(
    ("demands", "outcomes"),
    [
        ({"max_kl": 0.02, "max_perplexity_increase": 0.02, "min_agreement": 0.9}, ["pass", "pass", "pass"]),
        ({"max_kl": 0.001, "max_perplexity_increase": 0.001, "min_agreement": 0.99}, ["fail", "fail", "fail"]),
        ({"max_kl": 0.01, "max_perplexity_increase": 0.01, "min_agreement": 0.95}, ["inconclusive"] * 3),
        ({"max_kl": None}, []),
    ],
)
def test_each_demand_is_judged_by_its_metric(demands: Demands, outcomes: list[str]) -> None:
    assert [limit.outcome for limit in judged((KL, RATIO, TOP), demands)] == outcomes


def test_models_that_differ_no_more_than_two_runs_pass_everything() -> None:
    same = (Metric("kl_mean", 1e-9, "nats", 0.0, 2.0, 3, floor=1e-8), RATIO, TOP)
    limits = judged(same, {"max_kl": 0.0, "max_perplexity_increase": 0.0, "min_agreement": 1.0})
    assert [limit.outcome for limit in limits] == ["pass"] * 3
    assert "no divergence beyond the noise floor of 1e-08 nats" in limits[0].reason


def test_equal_top_tokens_alone_do_not_make_models_the_same() -> None:
    few = Metric("top1_agreement", 1.0, "", 0.9, 1.0, 3, floor=1.0)
    assert judged((KL, RATIO, few), {"min_agreement": 0.99})[0].outcome == "inconclusive"


def test_a_metric_that_has_no_interval_for_want_of_data_settles_nothing() -> None:
    (limit,) = judged((Metric("kl_mean", 0.01, "nats", None, None, 1),), {"max_kl": 1.0})
    assert limit.outcome == "inconclusive"
    assert limit.needed is not None


@pytest.mark.parametrize(("bound", "outcome"), [(0.001, "fail"), (0.015, "inconclusive"), (0.05, "pass")])
def test_between_two_bounds_both_must_agree(bound: float, outcome: str) -> None:
    upper = Metric("kl_mean_upper_bound", 0.02, "nats", 0.018, 0.025, 50)
    (limit,) = judged((KL, upper), {"max_kl": bound})
    assert (limit.metric, limit.outcome) == ("kl_mean", outcome)


def test_a_lower_bound_within_the_floor_is_no_proof() -> None:
    low, upper = Metric("kl_mean", 0.0, "nats", 0.0, 0.0, 50, floor=1e-9), Metric("kl_mean_upper_bound", 0.5, "nats", 0.4, 0.6, 50)  # fmt: skip # noqa: E501
    assert judged((low, upper), {"max_kl": 0.1})[0].outcome == "inconclusive"


@pytest.mark.parametrize(
    ("demands", "task", "message"),
    [
        (
            {"max_kl": 1.0},
            "choice",
            "max_kl does not go with a choice task, which has min_agreement, max_accuracy_drop",
        ),
        ({"max_accuracy_drop": 0.1}, "language", "max_accuracy_drop does not go with a language task"),
        ({"min_agreement": 1.5}, "language", "min_agreement is a share from 0 to 1, got 1.5"),
        ({"max_accuracy_drop": 2}, "classification", "max_accuracy_drop is a share from 0 to 1, got 2"),
        ({"max_kl": -1.0}, "language", "max_kl must not be negative, got -1"),
        ({"max_kl": float("nan")}, "language", "max_kl must not be negative, got nan"),
    ],
)
def test_demands_that_make_no_sense_are_refused(demands: Demands, task: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        check_demands(demands, task)


def test_what_was_not_measured_cannot_be_judged() -> None:
    with pytest.raises(SchemeError, match="max_accuracy_drop cannot be judged: the data has nothing"):
        judged((KL,), {"max_accuracy_drop": 0.1})
