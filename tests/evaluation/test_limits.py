from __future__ import annotations

import math

import pytest

from tersor.core.evaluation import Metric
from tersor.evaluation.limits import judge


def kl(value: float, low: float | None, high: float | None, floor: float | None = None) -> Metric:
    return Metric("kl_mean", value, "nats", low, high, 40, floor)


@pytest.mark.parametrize(
    ("low", "high", "bound", "is_least", "outcome"),
    [
        (0.010, 0.014, 0.020, False, "pass"),
        (0.010, 0.014, 0.014, False, "pass"),
        (0.010, 0.014, 0.001, False, "fail"),
        (0.010, 0.014, 0.010, False, "inconclusive"),
        (0.010, 0.014, 0.013, False, "inconclusive"),
        (0.010, 0.014, 0.001, True, "pass"),
        (0.010, 0.014, 0.010, True, "pass"),
        (0.010, 0.014, 0.020, True, "fail"),
        (0.010, 0.014, 0.014, True, "inconclusive"),
        (0.010, 0.014, 0.013, True, "inconclusive"),
        (-math.inf, math.inf, 0.5, False, "inconclusive"),
        (0.012, 0.012, 0.012, False, "pass"),
        (0.012, 0.012, 0.012, True, "pass"),
        (0.010, math.inf, 0.001, False, "fail"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, bound: float, is_least: bool, outcome: str) -> None:
    found = judge(kl(0.012, low, high), bound, is_least=is_least)
    assert (found.metric, found.bound, found.is_least, found.outcome) == ("kl_mean", bound, is_least, outcome)
    assert (found.needed is not None) == (outcome == "inconclusive")
    assert "kl_mean is 0.012 nats" in found.reason
    assert f"{bound:g}" in found.reason


def test_a_metric_without_an_interval_is_exact() -> None:
    found = judge(kl(0.012, None, None), 0.01)
    assert found.outcome == "fail"
    assert found.reason == "kl_mean is 0.012 nats: 0.002 above the largest allowed, 0.01"
    assert judge(kl(0.012, None, None), 0.012).reason.endswith("equal to the largest allowed, 0.012")


def test_a_failure_says_by_how_much() -> None:
    found = judge(Metric("top1_agreement", 0.9, "", 0.88, 0.92, 1), 0.95, is_least=True)
    assert found.reason == (
        "top1_agreement is 0.9 (95 % interval 0.88 to 0.92, 1 unit): 0.05 below the smallest allowed, 0.95"
    )


def test_a_small_sample_says_how_many_units_would_do() -> None:
    found = judge(kl(0.012, 0.008, 0.017), 0.015)
    assert found.needed == 228
    assert found.reason.endswith(
        "the interval holds the largest allowed, 0.015; about 228 units would settle it, 40 were measured"
    )


def test_a_value_on_the_bound_is_settled_by_no_sample() -> None:
    found = judge(kl(0.012, 0.008, 0.017), 0.012)
    assert found.outcome == "inconclusive"
    assert "no sample settles it" in found.reason


@pytest.mark.parametrize("metric", [kl(math.nan, None, None), kl(0.1, math.nan, 0.2)])
def test_what_is_not_a_number_fails(metric: Metric) -> None:
    found = judge(metric, 0.5)
    assert (found.outcome, found.needed) == ("fail", None)
    assert found.reason == "kl_mean is not a number; largest allowed, 0.5"


def test_an_infinite_divergence_fails() -> None:
    assert judge(kl(math.inf, math.inf, math.inf), 1.0).outcome == "fail"


def test_a_bound_below_the_noise_floor_is_called_so() -> None:
    assert judge(kl(0.012, 0.010, 0.014, 0.002), 0.001).reason.endswith("; the noise floor, 0.002, misses it too")
    assert "floor" not in judge(kl(0.012, 0.010, 0.014, 0.002), 0.005).reason
    agreement = Metric("top1_agreement", 0.97, "", 0.96, 0.98, 30, 0.995)
    assert judge(agreement, 0.999, is_least=True).reason.endswith("; the noise floor, 0.995, misses it too")
    assert "floor" not in judge(agreement, 0.99, is_least=True).reason
