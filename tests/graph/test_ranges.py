"""Every rule against its definition on the numbers themselves, where the rule sees a histogram."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.ranges import BINS, ENTROPY_LEVELS, ENTROPY_STEP, RANGES, SHARES, Seen, range_rule
from tersor.graph.scheme import Quantizer, Scheme

from .conftest import Array

UNSIGNED = Scheme(8, signed=False, symmetric=False)
SYMMETRIC = Scheme(8, signed=True, symmetric=True)
RANDOM = np.random.default_rng(5)
DATA: dict[str, Array] = {
    "normal": RANDOM.normal(0.3, 1, (4, 4000)),
    "relu": np.maximum(RANDOM.normal(0, 1, (4, 4000)), 0),
    "heavy tails": RANDOM.standard_t(2, (4, 4000)),
    "below zero": -RANDOM.exponential(1, (4, 4000)),
    "far from zero": RANDOM.normal(50, 1, (4, 4000)),
    "one outlier": np.append(RANDOM.normal(0, 1, (4, 3999)), [[900.0]] * 4, axis=1),
    "two numbers": RANDOM.choice([-1.0, 2.0], (4, 100)),
}
DATA = {name: array.astype(np.float32) for name, array in DATA.items()}


def seen_of(batches: Array) -> Seen:
    seen = Seen()
    for batch in batches:
        seen.add_extremes(batch)
    for batch in batches:
        seen.add_counts(batch)
    return seen


@pytest.mark.parametrize("name", DATA)
def test_a_histogram_counts_every_number_within_a_bin_of_its_place(name: str) -> None:
    x, seen = DATA[name], seen_of(DATA[name])
    assert (seen.low, seen.high) == (x.min(), x.max())
    assert seen.counts is not None
    assert seen.counts.sum() == x.size
    width = (seen.high - seen.low) / BINS
    edges = seen.low + width * np.arange(1, BINS)
    below = np.searchsorted(np.sort(x.reshape(-1)), [edges - width / 50, edges + width / 50])
    counted = np.cumsum(seen.counts)[:-1]  # float32 places numbers within a fiftieth of an edge on either side
    assert ((below[0] <= counted) & (counted <= below[1])).all()


@pytest.mark.parametrize("name", DATA)
def test_minmax_and_average_are_the_extremes(name: str) -> None:
    x, seen = DATA[name], seen_of(DATA[name])
    assert RANGES["minmax"](seen, UNSIGNED) == (x.min(), x.max())
    wanted = x.min(1).astype(np.float64).mean(), x.max(1).astype(np.float64).mean()
    np.testing.assert_allclose(RANGES["average"](seen, UNSIGNED), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", DATA)
def test_a_percentile_is_that_of_the_sorted_numbers_within_a_bin(name: str) -> None:
    x, seen = np.sort(DATA[name].reshape(-1).astype(np.float64)), seen_of(DATA[name])
    low, high = RANGES["percentile"](seen, UNSIGNED)
    width = (seen.high - seen.low) / BINS
    dropped = math.floor(len(x) * 0.00005)
    assert abs(low - x[dropped]) <= 1.05 * width
    assert abs(high - x[len(x) - 1 - dropped]) <= 1.05 * width
    assert ((x >= low - width / 50) & (x <= high + width / 50)).mean() >= 0.9999 - 2 / len(x)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("scheme", [UNSIGNED, SYMMETRIC], ids=str)
def test_mse_finds_what_trying_every_share_on_the_numbers_finds(name: str, scheme: Scheme) -> None:
    x, seen = DATA[name].reshape(-1), seen_of(DATA[name])

    def lost(low: float, high: float) -> float:
        quantizer = Quantizer.of_range(low, high, scheme)
        return float(np.square(quantizer.values(quantizer.codes(x)).astype(np.float64) - x).sum())

    least = min(
        lost(seen.low * low, seen.high * high) for high in SHARES for low in ((high,) if scheme.symmetric else SHARES)
    )
    found = lost(*RANGES["mse"](seen, scheme))
    width = (seen.high - seen.low) / BINS
    # every number stands for the middle of its bin, up to half a width away: the root of the sum moves by half a width
    # for each of two that are compared
    assert math.sqrt(found / x.size) <= math.sqrt(least / x.size) + width
    assert found <= lost(seen.low, seen.high) + x.size * width * width


def slow_divergence(counts: Array, stop: int) -> float:
    """Migacz 2017, step by step: P with its outliers in the last bin, Q of what is inside in 128 steps."""
    inside = [float(count) for count in counts[:stop]]
    p = [*inside[:-1], inside[-1] + float(sum(counts[stop:]))]
    edges = [round(stop * step / ENTROPY_LEVELS) for step in range(ENTROPY_LEVELS + 1)]
    q = [0.0] * stop
    for start, end in itertools.pairwise(edges):
        filled = [place for place in range(start, end) if inside[place] > 0]
        for place in filled:
            q[place] = sum(inside[start:end]) / len(filled)
    total_p, total_q = sum(p), max(sum(q), 1e-300)
    return sum(
        a / total_p * math.log(a / total_p / max(b / total_q, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0
    )


@pytest.mark.parametrize("name", ["normal", "relu", "heavy tails", "one outlier"])
def test_entropy_is_the_least_divergence_of_a_slow_loop(name: str) -> None:
    seen = seen_of(DATA[name])
    assert seen.counts is not None
    largest = max(-seen.low, seen.high)
    counts = np.zeros(BINS)
    for centre, count in zip(seen.centres, seen.counts, strict=True):
        counts[min(int(abs(centre) / largest * BINS), BINS - 1)] += count
    counts[0] = 0
    found = {stop: slow_divergence(counts, stop) for stop in range(ENTROPY_LEVELS, BINS + 1, ENTROPY_STEP)}
    low, high = RANGES["entropy"](seen, UNSIGNED)
    stop = round(max(-low, high) / largest * BINS)
    assert found[stop] <= min(found.values()) * (1 + 1e-9)
    assert seen.low <= low <= high <= seen.high


@pytest.mark.parametrize("rule", RANGES)
@pytest.mark.parametrize("value", [0.0, 1.5, -2.0, 1e-44, 3e38])
def test_one_number_only_is_a_range_that_holds_it(rule: str, value: float) -> None:
    x = np.full((2, 9), value, np.float32)
    seen = seen_of(x)
    for scheme in (UNSIGNED, SYMMETRIC):
        quantizer = Quantizer.of_range(*RANGES[rule](seen, scheme), scheme)
        off = np.abs(quantizer.values(quantizer.codes(x)).astype(np.float64) - x).max()
        assert off <= max(abs(value) / 100, 256 * np.finfo(np.float32).tiny)


@pytest.mark.parametrize("rule", RANGES)
@pytest.mark.parametrize("name", DATA)
def test_no_rule_leaves_what_was_seen(rule: str, name: str) -> None:
    seen = seen_of(DATA[name])
    low, high = RANGES[rule](seen, UNSIGNED)
    width = 1e-9 * (seen.high - seen.low)
    assert min(seen.low, 0) - width <= low <= high <= max(seen.high, 0) + width


def test_extremes_that_are_not_finite_are_told() -> None:
    for value in (np.nan, np.inf, -np.inf):
        seen = Seen()
        seen.add_extremes(np.array([0.0, value, 1.0], np.float32))
        seen.add_extremes(np.array([0.0, 1.0], np.float32))
        assert not seen.is_finite()


def test_a_rule_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(SchemeError, match=r"no range 'best'; there are minmax, .*mse"):
        range_rule("best")
