"""Numbers as people read them: byte counts, significant digits, intervals."""

from __future__ import annotations

import math
import re

from tersor.core.evaluation import Metric

__all__ = ["amount", "decibels", "interval", "number", "percent", "size", "title"]

TITLES = {
    "perplexity": "perplexity",
    "reference_perplexity": "perplexity of the reference",
    "perplexity_ratio": "perplexity, ratio to the reference",
    "perplexity_sliding": "perplexity, sliding window",
    "reference_perplexity_sliding": "perplexity of the reference, sliding window",
    "kl": "KL divergence",
    "divergence": "KL divergence",
    "kl_mean": "KL divergence, mean",
    "kl_median": "KL divergence, median",
    "kl_p99": "KL divergence, 99 % of tokens",
    "kl_max": "KL divergence, largest",
    "top1_agreement": "same most likely token",
    "top5_agreement": "shared among the five most likely",
    "rms_delta_p": "change of the right token's probability, rms",
    "top1_accuracy": "accuracy, top 1",
    "top5_accuracy": "accuracy, top 5",
    "time_to_first_token_ms": "time to the first token",
    "prompt_tokens_per_s": "prompt",
    "generation_tokens_per_s": "generation",
    "latency_p50_ms": "time per token, median",
    "latency_p95_ms": "time per token, 95 %",
    "latency_p99_ms": "time per token, 99 %",
    "peak_memory_bytes": "memory, peak",
    "steady_memory_bytes": "memory, steady",
    "file_bytes": "size of the file",
    "loaded_bytes": "size when loaded",
    "energy_joules_per_token": "energy per token",
    "load_s": "time to load",
}

PERCENTAGES = ("agreement", "accuracy", "drop", "rms_delta_p")
"""Words in the names of metrics that are shares of one and are read as percentages."""
_BATCH = re.compile(r"throughput_batch_(\d+)_tokens_per_s", re.ASCII)


def size(count: int) -> str:
    """Return a byte count in the unit that reads best.

    >>> size(512), size(3_670_016), size(5 * 2**30)
    ('512 B', '3.50 MiB', '5.00 GiB')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def number(value: float, digits: int = 4, *, is_padded: bool = False) -> str:
    """Return a number with `digits` significant digits, thousands set apart, powers of ten only where they help.

    Zeros at the end are dropped, unless `is_padded`: then only those of whole numbers are.

    >>> number(0.012345), number(1234.5), number(3.0), number(4.2e-7), number(1.5e12), number(-0.0)
    ('0.01235', '1,234', '3', '4.2e-7', '1.5e12', '0')
    >>> number(33.4, is_padded=True), number(3.0, is_padded=True)
    ('33.40', '3')
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent >= 9:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa if is_padded else _short(mantissa)}e{int(power)}"
    text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return text if is_padded and value != int(value) else _short(text)


def percent(value: float, digits: int = 3, *, is_padded: bool = False) -> str:
    """Return a share of one as a percentage with `digits` significant digits, at most three of them decimals.

    >>> percent(0.98765), percent(0.000123), percent(1.0), percent(0.0)
    ('98.8 %', '0.012 %', '100 %', '0 %')
    """
    if not math.isfinite(value) or value == 0:
        return f"{number(value)} %"
    hundred = value * 100
    if not 1e-6 < abs(hundred) < 1e6:
        return f"{number(hundred, digits)} %"
    decimals = min(max(digits - 1 - math.floor(math.log10(abs(hundred))), 0), 3)
    text = f"{hundred:.{decimals}f}"
    return f"{text if is_padded and hundred != int(hundred) else _short(text)} %"


def decibels(value: float | None) -> str:
    """Return a ratio in dB: "∞ dB" for None, which is no noise at all."""
    return "∞ dB" if value is None else f"{value:.1f} dB" if math.isfinite(value) else f"{number(value)} dB"


def amount(metric: Metric, value: float | None) -> str:
    """Return `value` in the unit of `metric`, a dash for None.

    >>> amount(Metric("kl_mean", 0.01234567, "nats"), 0.01234567), amount(Metric("top1_agreement", 0.95), 0.95)
    ('0.01235 nats', '95 %')
    >>> amount(Metric("file_bytes", 0, "bytes"), 2**20), amount(Metric("perplexity_ratio", 1.01234), 1.01234)
    ('1.00 MiB', '1.01234')
    """
    if value is None:
        return "–"
    if metric.unit == "bytes" and math.isfinite(value):
        return size(round(value))
    if not metric.unit and any(word in metric.name for word in PERCENTAGES):
        return percent(value, 4, is_padded=True)
    digits = 6 if "_ratio" in metric.name else 4  # what matters of a ratio is how far it is from one
    return f"{number(value, digits, is_padded=True)} {metric.unit}".rstrip()


def interval(metric: Metric) -> str:
    """Return the 95 % confidence interval of a metric in words, a dash where there is none.

    >>> interval(Metric("kl_mean", 0.2, "nats", low=0.1, high=0.3))
    '0.1000 … 0.3000 nats'
    """
    if metric.low is None or metric.high is None:
        return "–"
    low, high = amount(metric, metric.low), amount(metric, metric.high)
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(unit).rstrip() if unit else low} … {high}"


def _short(text: str) -> str:
    """Drop zeros that end the decimals."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def title(name: str) -> str:
    """Return what a metric or histogram is called in prose.

    >>> title("kl_p99"), title("my_own_metric"), title("throughput_batch_8_tokens_per_s")
    ('KL divergence, 99 % of tokens', 'my own metric', 'throughput, batch of 8')
    """
    match = _BATCH.fullmatch(name)
    if match:
        return f"throughput, batch of {match[1]}"
    return TITLES.get(name, name.replace("_", " "))
