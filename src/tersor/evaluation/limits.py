"""Was a demand on a metric met? Three answers: pass, fail, or too little data to tell."""

from __future__ import annotations

import math

from tersor.core.evaluation import Limit, Metric, Outcome
from tersor.evaluation.statistics import MOST_UNITS, Interval, units_needed

__all__ = ["judge"]


def judge(metric: Metric, bound: float, *, is_least: bool = False) -> Limit:
    """Judge `metric` against `bound`, the largest value allowed (the smallest if `is_least`).

    The demand passes if the whole confidence interval keeps to the bound and fails if none of it does; a metric
    without an interval is taken as exact. Otherwise `needed` says how many units would settle it.

    >>> judge(Metric("kl_mean", 0.012, "nats", 0.010, 0.015, 60), 0.001).reason
    'kl_mean is 0.012 nats (95 % interval 0.01 to 0.015, 60 units): 0.011 above the largest allowed, 0.001'
    >>> judge(Metric("top1_agreement", 0.96, "", 0.94, 0.975, 20), 0.95, is_least=True).needed
    164
    """
    low = metric.value if metric.low is None else metric.low
    high = metric.value if metric.high is None else metric.high
    allowed = f"{'smallest' if is_least else 'largest'} allowed, {bound:g}"
    if any(map(math.isnan, (metric.value, low, high, bound))):
        return Limit(metric.name, bound, is_least, "fail", f"{metric.name} is not a number; {allowed}")
    measured = _measured(metric, low, high)
    distance = f"{abs(metric.value - bound):.3g} {'above' if metric.value > bound else 'below'} the {allowed}"
    outcome = _outcome(low, high, bound, is_least)
    if outcome != "inconclusive":
        if metric.value == bound:
            distance = f"equal to the {allowed}"
        return Limit(
            metric.name, bound, is_least, outcome, f"{measured}: {distance}{_floored(metric, bound, is_least)}"
        )
    needed = units_needed(Interval(metric.value, low, high, metric.units), bound)
    reason = f"{measured}: the interval holds the {allowed}; {_remedy(metric, needed)}"
    return Limit(metric.name, bound, is_least, outcome, reason + _floored(metric, bound, is_least), needed)


def _outcome(low: float, high: float, bound: float, is_least: bool) -> Outcome:
    if low >= bound if is_least else high <= bound:
        return "pass"
    if high < bound if is_least else low > bound:
        return "fail"
    return "inconclusive"


def _measured(metric: Metric, low: float, high: float) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    units = f"{metric.units} unit{'' if metric.units == 1 else 's'}"
    if metric.low is None and metric.high is None:
        return f"{metric.name} is {metric.value:.4g}{unit}"
    return f"{metric.name} is {metric.value:.4g}{unit} (95 % interval {low:.4g} to {high:.4g}, {units})"


def _remedy(metric: Metric, needed: int) -> str:
    if needed >= MOST_UNITS:
        return "the value is so close to it that no sample settles it"
    return f"about {needed} units would settle it, {metric.units} were measured"


def _floored(metric: Metric, bound: float, is_least: bool) -> str:
    """Say so where two runs that should be equal already miss the bound."""
    if metric.floor is None or (metric.floor >= bound if is_least else metric.floor <= bound):
        return ""
    return f"; the noise floor, {metric.floor:.3g}, misses it too"
