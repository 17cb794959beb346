"""What a user demands of an artefact, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Limit, Metric
from tersor.evaluation.limits import judge

__all__ = ["Demands", "check_demands", "given", "judged"]

METRICS = {
    "language": {"max_kl": "kl_mean", "max_perplexity_increase": "perplexity_ratio", "min_agreement": "top1_agreement"},
    "choice": {"min_agreement": "agreement", "max_accuracy_drop": "accuracy_drop"},
    "classification": {"min_agreement": "agreement", "max_accuracy_drop": "accuracy_drop"},
}
"""Task → demand → the metric that it is about."""


class Demands(TypedDict, total=False):
    """Limits, each None or absent for none.

    max_kl                   largest mean divergence, nats
    max_perplexity_increase  largest relative increase of perplexity: 0.02 allows 2 %
    min_agreement            smallest share of equal top tokens, 0 … 1; of equal answers for questions and nets
    max_accuracy_drop        largest share of answers that may be lost, 0 … 1; for questions and nets
    """

    max_kl: float | None
    max_perplexity_increase: float | None
    min_agreement: float | None
    max_accuracy_drop: float | None


def check_demands(demands: Demands, task: str) -> None:
    """Raise SchemeError for a limit that makes no sense, or that this task has no metric for."""
    for name, value in given(demands).items():
        if name not in METRICS[task]:
            raise SchemeError(f"{name} does not go with a {task} task, which has {', '.join(METRICS[task])}")
        if name in ("min_agreement", "max_accuracy_drop") and not 0 <= value <= 1:
            raise SchemeError(f"{name} is a share from 0 to 1, got {value:g}")
        if not value >= 0:
            raise SchemeError(f"{name} must not be negative, got {value:g}")


def judged(metrics: Sequence[Metric], demands: Demands) -> tuple[Limit, ...]:
    """Judge each demand by its metric.

    Models whose mean divergence does not exceed the noise floor pass everything: two runs of the full model differ as
    much. A divergence that is known between two bounds fails if the lower one does and passes if the upper one does.
    Raises SchemeError where the metric was not measured, as accuracy is not without labels.
    """
    found = {metric.name: metric for metric in metrics}
    limits = []
    for name, value in given(demands).items():
        metric = next((found[rows[name]] for rows in METRICS.values() if rows.get(name) in found), None)
        if metric is None:
            raise SchemeError(f"{name} cannot be judged: the data has nothing to measure it by, such as labels")
        bound, is_least = (1 + value if name == "max_perplexity_increase" else value), name.startswith("min_")
        upper = found.get(f"{metric.name}_upper_bound")
        if _are_same(found):
            floor = found["kl_mean"].floor
            reason = f"{metric.name} is {metric.value:.4g}: no divergence beyond the noise floor of {floor:.2g} nats"
            limits.append(Limit(metric.name, bound, is_least, "pass", reason))
        elif upper is None:
            limits.append(judge(_open(metric), bound, is_least=is_least))
        else:
            limits.append(_between(judge(_open(metric), bound), judge(_open(upper), bound)))
    return tuple(limits)


def given(demands: Demands) -> dict[str, float]:
    """The demands that are there: name → bound."""
    named = {
        "max_kl": demands.get("max_kl"),
        "max_perplexity_increase": demands.get("max_perplexity_increase"),
        "min_agreement": demands.get("min_agreement"),
        "max_accuracy_drop": demands.get("max_accuracy_drop"),
    }
    return {name: value for name, value in named.items() if value is not None}


def _are_same(found: Mapping[str, Metric]) -> bool:
    """Whether subject and reference differ no more than two runs of one model; a lower bound cannot tell."""
    metric = found.get("kl_mean")
    return (
        metric is not None
        and metric.floor is not None
        and metric.value <= metric.floor
        and "kl_mean_upper_bound" not in found
    )


def _open(metric: Metric) -> Metric:
    """With an infinite interval where too little data left it without one: such a metric settles nothing."""
    return replace(metric, low=-math.inf, high=math.inf) if metric.low is None else metric


def _between(low: Limit, high: Limit) -> Limit:
    if low.outcome == "fail":
        return low
    if high.outcome == "pass":
        return replace(high, metric=low.metric)
    remedy = "a reference stored with a larger --top-k, or the model itself, tells more"
    return replace(high, metric=low.metric, outcome="inconclusive", reason=f"{low.reason}; {high.reason}; {remedy}")
