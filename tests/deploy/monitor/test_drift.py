"""Drift against scipy's distances, against chance, and against inputs that did drift."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.monitor import Categories, Distance, FalseAlarmBudget, Histogram, alarming, distances, drift

stats: Any = pytest.importorskip("scipy.stats")
spatial: Any = pytest.importorskip("scipy.spatial.distance")

Sample: TypeAlias = npt.NDArray[Any]
Draw: TypeAlias = Callable[[np.random.Generator, int], Sample]

SOURCES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "whole numbers": lambda rng, n: rng.poisson(3, n).astype(np.float64),
    "many zeros": lambda rng, n: np.where(rng.random(n) < 0.7, 0.0, rng.exponential(size=n)),
    "missing": lambda rng, n: np.where(rng.random(n) < 0.05, np.nan, rng.exponential(size=n)),
}


def test_distances_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    reference = Histogram.of(rng.normal(size=2000), cells=12)
    counts = reference.count(rng.normal(0.3, 1.2, 700))
    found, p, q = distances(reference, counts), counts / counts.sum(), reference.shares
    assert found["js"] == pytest.approx(spatial.jensenshannon(p, q) ** 2)
    smooth = (counts + 0.5) / (counts + 0.5).sum()
    assert found["psi"] == pytest.approx(stats.entropy(smooth, q) + stats.entropy(q, smooth))
    assert found["ks"] == pytest.approx(max(abs(p[: k + 1].sum() - q[: k + 1].sum()) for k in range(len(p))))


def test_ks_of_cells_comes_near_to_that_of_the_samples() -> None:
    rng = np.random.default_rng(2)
    sample, window = rng.normal(size=5000), rng.normal(0.2, 1, 2000)
    reference = Histogram.of(sample, cells=200)
    found = distances(reference, reference.count(window))["ks"]
    assert found == pytest.approx(stats.ks_2samp(sample, window).statistic, abs=0.008)


def test_distances_of_many_windows_are_those_of_each() -> None:
    for reference in (Histogram.of(range(100), cells=5), Categories.of(["a", "b", "c"] * 20)):
        windows = reference.draw(50, 7, np.random.default_rng(3))
        for name, found in distances(reference, windows).items():
            assert found == pytest.approx([distances(reference, window)[name] for window in windows])
            assert (found >= 0).all()


@pytest.mark.parametrize("chosen", ["js", "psi", "ks"])
@pytest.mark.parametrize("source", SOURCES)
def test_without_drift_small_p_values_are_as_rare_as_they_say(source: str, chosen: Distance) -> None:
    rng, p_values = np.random.default_rng(4), []
    for seed in range(300):
        reference = Histogram.of(SOURCES[source](rng, 400), cells=10)
        window = SOURCES[source](rng, 300)
        p_values.append(drift(reference, reference.count(window), chosen=chosen, draws=400, seed=seed).p_value)
    for level in (0.05, 0.2):
        assert np.mean(np.array(p_values) <= level) <= level + 3.3 * math.sqrt(level * (1 - level) / 300)
    if source == "normal":  # where it is exact, and the two tests share the level
        assert np.mean(np.array(p_values) <= 0.5) > 0.25


def test_labels_without_drift_are_no_alarm() -> None:
    rng, p_values = np.random.default_rng(5), []
    labels, shares = np.array(list("abcdefg")), [0.5, 0.2, 0.15, 0.1, 0.04, 0.008, 0.002]
    for seed in range(200):
        reference = Categories.of(rng.choice(labels, 1000, p=shares).tolist())
        window = reference.count(rng.choice(labels, 300, p=shares).tolist())
        p_values.append(drift(reference, window, draws=400, seed=seed).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 200)


def test_the_folklore_limit_of_psi_means_another_thing_for_every_window() -> None:
    """Why thresholds are drawn here: 0.2 is always exceeded without drift by 40 numbers, and never by 4000 with it."""
    rng = np.random.default_rng(6)
    reference = Histogram.of(rng.normal(size=2000))
    small = drift(reference, reference.count(rng.normal(size=40)))
    large = drift(reference, reference.count(rng.normal(0.25, 1, 4000)))
    assert small.psi > 0.2
    assert small.p_value > 0.05
    assert large.psi < 0.2
    assert large.p_value < 0.001


@pytest.mark.parametrize("chosen", ["js", "psi", "ks"])
def test_drift_is_found(chosen: Distance) -> None:
    rng = np.random.default_rng(7)
    reference = Histogram.of(rng.normal(size=2000))
    found = drift(reference, reference.count(rng.normal(0.4, 1, 500)), chosen=chosen, draws=20_000)
    assert found.p_value == pytest.approx(2 / 20_001)
    assert found.draws == 20_000
    languages = Categories.of(["de"] * 500 + ["en"] * 500)
    new = drift(languages, languages.count(["de"] * 100 + ["en"] * 90 + ["fr"] * 10), chosen=chosen)
    assert new.p_value < 0.001
    assert new.outside == 0.05


def test_missing_values_and_values_outside_are_drift() -> None:
    rng = np.random.default_rng(8)
    reference = Histogram.of(rng.uniform(size=1000))
    window = rng.uniform(size=300)
    gone = drift(reference, reference.count(np.where(np.arange(300) < 12, np.nan, window)))
    far = drift(reference, reference.count(np.where(np.arange(300) < 12, 7.0, window)))
    assert max(gone.p_value, far.p_value) < 0.001
    assert far.outside == gone.outside == 0.04


def test_how_many_lie_outside_has_the_exact_probability() -> None:
    """A window of 30 and a sample of 99: two gaps and a half of 100 and a half lie outside."""
    reference = Histogram.of(np.arange(99.0), cells=5)
    inside = np.linspace(0, 98, 27)
    found = drift(reference, reference.count(np.append(inside, [-1.0, 200.0, 200.0])), draws=50)
    assert found.p_value == pytest.approx(2 * stats.betabinom.sf(2, 30, 2.5, 98), rel=1e-9)
    assert drift(reference, reference.count(inside), draws=50).outside == 0


def test_the_same_seed_gives_the_same_p_value_and_what_is_common_stops_early() -> None:
    reference = Histogram.of(np.random.default_rng(9).normal(size=500))
    counts = reference.count(np.random.default_rng(10).normal(size=500))
    found = drift(reference, counts, draws=100_000, seed=3)
    assert found == drift(reference, counts, draws=100_000, seed=3)
    assert found.draws < 2000


def replay(rng: np.random.Generator, hours: int, shift: float) -> list[tuple[str, ...]]:
    """Alarms of each hour: 12 features, 200 requests an hour, the first feature shifted."""
    budget = FalseAlarmBudget()
    references = {f"f{i}": Histogram.of(rng.normal(size=1000)) for i in range(12)}
    alarms = []
    for hour in range(hours):
        p_values = {}
        for i, (name, reference) in enumerate(references.items()):
            counts = reference.count(rng.normal(shift if i == 0 else 0.0, 1, 200))
            p_values[name] = drift(reference, counts, chosen="ks", draws=budget.draws(12), seed=hour).p_value
        alarms.append(alarming(p_values, budget))
    return alarms


def test_a_shift_of_half_a_deviation_is_found_within_two_hours() -> None:
    alarms = replay(np.random.default_rng(11), 2, 0.5)
    assert any("f0" in names for names in alarms)


@pytest.mark.slow
def test_thirty_stationary_days_stay_within_the_budget() -> None:
    """One alarm in 30 days is accepted on average; five or more come by chance in 4 of 1000 replays."""
    alarms = replay(np.random.default_rng(12), 720, 0.0)
    assert sum(map(bool, alarms)) <= 4


def test_bad_input_is_refused() -> None:
    reference = Histogram.of(range(50), cells=5)
    for counts in (np.zeros(8, np.int64), np.ones(3, np.int64), np.array([-1, *[1] * 7])):
        with pytest.raises(ShapeError, match=r"counts of a window of one number or more are needed, \[8\]"):
            drift(reference, counts)
    wrong: Any = "wasserstein"
    with pytest.raises(SchemeError, match="js, psi or ks can be tested"):
        drift(reference, np.ones(8, np.int64), chosen=wrong)
