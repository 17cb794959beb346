"""From numbers per token to metrics with 95 % intervals; the unit is the chunk of text, whose tokens are correlated."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tersor.core.evaluation import Histogram, Metric
from tersor.evaluation.language.comparison import Float64, Tokens
from tersor.evaluation.statistics import (
    Interval,
    exp_interval,
    mean_interval,
    proportion_interval,
    quantile_interval,
    root_interval,
)

__all__ = ["histogram", "measure"]

EDGES = (0.0, *(10.0 ** (exponent / 2) for exponent in range(-16, 4)))
"""Of the histogram of divergence, in nats: half powers of ten from 1e-8 to 10^1.5; what is outside joins the ends."""


def measure(tokens: Tokens, noise: Tokens | None = None) -> tuple[Metric, ...]:
    """Return all metrics of `tokens`, each with the noise floor that `noise` (a model against itself) gives.

    Everything but the sliding perplexities is over the tokens of the llama-perplexity convention.
    """
    found = _metrics(tokens)
    if noise is not None:
        floors = {metric.name: metric.value for metric in _metrics(noise)}
        found = [_with_floor(metric, floors) for metric in found]
    return tuple(found)


def histogram(tokens: Tokens) -> Histogram:
    """Count the divergences of the chunk convention between EDGES."""
    values = np.clip(tokens.divergence[tokens.chunk], 0.0, np.nextafter(EDGES[-1], 0.0))
    counts, _ = np.histogram(values, EDGES)
    return Histogram("divergence", EDGES, tuple(counts.tolist()))


def _metrics(every: Tokens) -> list[Metric]:
    tokens = every.only(every.chunk)
    unit = tokens.unit
    losses = (("perplexity", tokens.subject_loss), ("reference_perplexity", tokens.reference_loss))
    found = [_metric(name, exp_interval(_mean(values, unit))) for name, values in losses]
    found.append(_metric("perplexity_ratio", exp_interval(_mean(tokens.subject_loss - tokens.reference_loss, unit))))
    found += _sliding(every.only(every.sliding))
    found += _divergence(tokens)
    top = (("top1_agreement", tokens.same_top.astype(np.float64)), ("top5_agreement", tokens.shared_top5))
    found += [_metric(name, proportion_interval(*_by_unit(values, unit))) for name, values in top]
    change = np.exp(-tokens.subject_loss) - np.exp(-tokens.reference_loss)
    found.append(_metric("rms_delta_p", root_interval(_mean(change**2, unit))))
    found += [_metric(name, _mean(values, unit)) for name, values in tokens.own.items()]
    return found


def _sliding(tokens: Tokens) -> list[Metric]:
    if not len(tokens.place):
        return []
    pairs = (
        ("perplexity_sliding", tokens.subject_loss),
        ("reference_perplexity_sliding", tokens.reference_loss),
    )
    return [_metric(name, exp_interval(_mean(values, tokens.unit))) for name, values in pairs]


def _divergence(tokens: Tokens) -> list[Metric]:
    unit, values = tokens.unit, tokens.divergence
    found = [
        _metric("kl_mean", _divergence_mean(values, unit), "nats"),
        _metric("kl_median", quantile_interval(values, unit, 0.5), "nats"),
        _metric("kl_p99", quantile_interval(values, unit, 0.99), "nats"),
        Metric("kl_max", float(values.max()), "nats", units=len(np.unique(unit))),
    ]
    if tokens.divergence_high is values or np.array_equal(tokens.divergence_high, values):
        return found
    high = _divergence_mean(tokens.divergence_high, unit)
    bounded = _metric("kl_mean_upper_bound", high, "nats")
    return [*found, bounded]


def _mean(values: Float64, unit: npt.NDArray[np.int64]) -> Interval:
    return mean_interval(*_by_unit(values, unit))


def _divergence_mean(values: Float64, unit: npt.NDArray[np.int64]) -> Interval:
    interval = _mean(values, unit)
    return replace(interval, low=max(0.0, interval.low))


def _by_unit(values: Float64, unit: npt.NDArray[np.int64]) -> tuple[Float64, Float64]:
    """The mean and the size of each unit."""
    _, index, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    return np.bincount(index, values) / sizes, sizes.astype(np.float64)


def _metric(name: str, interval: Interval, unit: str = "") -> Metric:
    has_ends = math.isfinite(interval.low) and math.isfinite(interval.high)
    low, high = (interval.low, interval.high) if has_ends else (None, None)
    return Metric(name, interval.value, unit, low, high, interval.units)


def _with_floor(metric: Metric, floors: dict[str, float]) -> Metric:
    floor = floors.get(metric.name)
    is_plain = "perplexity" in metric.name and metric.name != "perplexity_ratio"  # no difference of two models
    return metric if is_plain else replace(metric, floor=floor)
