from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tersor.evaluation.speed.interleave import Side
from tersor.evaluation.speed.runners import RUNNERS
from tersor.evaluation.speed.summary import LEAST_ROUNDS, metrics_of, order_interval, ratios_of, spread
from tersor.evaluation.speed.workload import Memory, Reading, Workload

WORK = Workload(prompt=100, generate=4, batches=(1, 2), rounds=3)


def side(name: str, steps: list[float], *, joules: float | None = None) -> Side:
    """A side whose rounds have steps of the given seconds each."""
    made = Side(Path(name), RUNNERS["llama.cpp"])
    made.loads = [step * 10 for step in steps]
    made.readings = [Reading(step * 8, step * 9, (step,) * 4, {1: 1 / step, 2: 1.5 / step}, joules) for step in steps]
    made.memory, made.loaded_bytes = Memory(3000, 2000), 1000
    return made


def test_metrics_are_medians_over_rounds() -> None:
    found = {metric.name: metric for metric in metrics_of(side("A", [0.1, 0.4, 0.2]), WORK, 900)}
    expected = {
        "load_s": 2.0, "time_to_first_token_ms": 1800.0, "prompt_tokens_per_s": 62.5, "generation_tokens_per_s": 5.0,
        "throughput_batch_1_tokens_per_s": 5.0, "throughput_batch_2_tokens_per_s": 7.5,
        "latency_p50_ms": 200.0, "latency_p95_ms": 400.0, "latency_p99_ms": 400.0,
        "peak_memory_bytes": 3000.0, "steady_memory_bytes": 2000.0, "file_bytes": 900.0, "loaded_bytes": 1000.0,
    }  # fmt: skip
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(expected)
    assert all(metric.low is None for metric in found.values())  # three rounds give no interval
    assert found["generation_tokens_per_s"].units == 3


def test_ratios_are_those_of_rounds_that_ran_side_by_side() -> None:
    a, b = side("A", [1.0, 4.0, 5.0]), side("B", [2.0, 2.0, 5.0])
    found = {metric.name: metric.value for metric in ratios_of(a, b, WORK, (300, 600))}
    assert found["latency_p50_ms"] == pytest.approx(1.0)  # medians alone: 4 / 2
    assert found["generation_tokens_per_s"] == pytest.approx(1.0)
    assert found["load_s"] == pytest.approx(1.0)
    assert found["file_bytes"] == pytest.approx(0.5)
    assert found["peak_memory_bytes"] == pytest.approx(1.0)


def test_ratios_have_intervals_of_their_own() -> None:
    noise = [1.0, 3.0, 2.0, 7.0, 5.0, 4.0, 6.0, 9.0, 8.0]
    a, b = side("A", noise), side("B", [2 * value for value in noise])
    rows = {metric.name: metric for metric in ratios_of(a, b, WORK, (1, 1))}
    ratio, alone = rows["generation_tokens_per_s"], metrics_of(a, WORK, 1)[3]
    assert (ratio.value, ratio.low, ratio.high, ratio.units) == pytest.approx((2.0, 2.0, 2.0, 9))
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high > 2 * alone.low  # the noise of the machine, which the pairs do not have


def test_energy_is_reported_where_every_round_has_it() -> None:
    def names(one: Side) -> set[str]:
        return {metric.name for metric in metrics_of(one, WORK, 1)}

    full, none = side("A", [1.0, 1.0], joules=2.0), side("A", [1.0, 1.0])
    assert next(m.value for m in metrics_of(full, WORK, 1) if m.name == "energy_joules_per_token") == 0.5
    assert "energy_joules_per_token" not in names(none)
    full.readings[0] = none.readings[0]
    assert "energy_joules_per_token" not in names(full)
    beside = ratios_of(side("A", [1.0, 1.0], joules=1.0), none, WORK, (1, 1))
    assert "energy_joules_per_token" not in {metric.name for metric in beside}


def test_what_the_system_does_not_tell_is_left_out() -> None:
    one = side("A", [1.0])
    one.memory = Memory(None, None)
    assert not {"peak_memory_bytes", "steady_memory_bytes"} & {metric.name for metric in metrics_of(one, WORK, 1)}


@pytest.mark.parametrize("count", [6, 7, 9, 15, 40])
def test_the_interval_of_the_median_covers_it_at_least_95_percent_of_the_time(count: int) -> None:
    generator = np.random.default_rng(count)
    hits = 0
    for _ in range(2000):
        interval = order_interval(list(generator.exponential(size=count)))  # skewed: median is log 2
        assert interval is not None
        hits += interval[0] <= np.log(2) <= interval[1]
    assert hits / 2000 > 0.94  # 95 % less three standard errors of the simulation


def test_more_rounds_never_widen_the_ranks_and_few_give_none() -> None:
    assert order_interval(range(LEAST_ROUNDS - 1)) is None
    assert order_interval(range(LEAST_ROUNDS)) == (0, LEAST_ROUNDS - 1)
    assert order_interval(range(20)) == (5, 14)  # tables of the sign test: ranks 6 and 15
    shares = [
        (high - low) / count for count in (9, 20, 60, 200) for low, high in [order_interval(range(count)) or (0, 0)]
    ]
    assert all(later < sooner for sooner, later in pairwise(shares))


def test_spread_is_the_middle_half_over_the_median() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([0.0, 0.0]) == 0.0
