"""The test of error rates by simulation: how often it is wrong at any look, and how soon it is right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential import Count, ErrorRate, ErrorRules


def run(
    rates: tuple[float, float], rng: np.random.Generator, *, looks: int, ratio: int = 4, rules: ErrorRules | None = None
) -> ErrorRate:
    """Looks of 100 requests of the candidate, until it is harmful; the control serves `ratio` times as many."""
    test = ErrorRate.begin(rules)
    for _ in range(looks):
        ours, theirs = int(rng.binomial(100, rates[0])), int(rng.binomial(100 * ratio, rates[1]))
        test = test.update(Count(ours, 100), Count(theirs, 100 * ratio))
        if test.harmed_at is not None:
            break
    return test


def verdicts(rates: tuple[float, float], runs: int, seed: int, **options: Any) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.array([run(rates, rng, **options).standing.verdict for _ in range(runs)])


def test_a_candidate_like_its_control_is_called_harmful_no_more_often_than_promised() -> None:
    rules = ErrorRules(level=0.1)
    wrong = (verdicts((0.005, 0.005), 100, 1, looks=40, rules=rules) == "harmful").mean()
    assert wrong <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 100)
    wrong = (verdicts((0.2, 0.2), 150, 2, looks=40, rules=rules) == "harmful").mean()
    assert 0 < wrong <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 150)


@pytest.mark.slow
def test_a_candidate_worse_by_the_margin_is_called_safe_no_more_often_than_promised() -> None:
    rules = ErrorRules(safe_level=0.2, level=1e-9)
    wrong = (verdicts((0.01, 0.005), 200, 4, looks=50, rules=rules) == "safe").mean()
    assert 0.02 < wrong <= 0.2 + 2 * math.sqrt(0.2 * 0.8 / 200)


def test_four_times_as_many_errors_are_found() -> None:
    rng = np.random.default_rng(5)
    crossed = [run((0.02, 0.005), rng, looks=60, ratio=9).harmed_at or math.inf for _ in range(100)]
    assert np.median(crossed) <= 600
    assert np.isfinite(crossed).all()


def test_four_times_as_many_errors_are_found_within_a_thousand_requests() -> None:
    """No test of this level that compares with such a control finds more than 98.7 of 100, if it looks but once."""
    assert (verdicts((0.02, 0.005), 300, 9, looks=10, ratio=9) == "harmful").mean() >= 0.95


def test_errors_that_multiply_late_are_found_although_the_good_time_counts_on() -> None:
    rng, found = np.random.default_rng(10), []
    for _ in range(20):
        test = ErrorRate.begin()
        while test.harmed_at is None and test.candidate.total < 12_000:
            rate = 0.002 if test.candidate.total < 6000 else 0.03
            test = test.update(Count(int(rng.binomial(100, rate)), 100), Count(int(rng.binomial(900, 0.002)), 900))
        found.append(test.harmed_at or math.inf)
    assert np.median([at for at in found if at > 6000]) <= 7500


def test_the_level_is_split_between_both_tests_of_harm() -> None:
    test = ErrorRate.begin(ErrorRules(level=0.05))
    assert test.harm.level + test.exact.level == pytest.approx(0.05)
    assert test.standing.to_harm == pytest.approx(0)
    test = test.update(Count(2, 100), Count(4, 900))
    assert test.standing.to_harm == max(test.harm.nearness, test.exact.nearness) > 0


def test_a_candidate_like_its_control_becomes_safe() -> None:
    assert (verdicts((0.001, 0.001), 60, 6, looks=80) == "safe").mean() > 0.9


def test_an_incident_that_hits_both_says_nothing_against_the_candidate() -> None:
    rng, wrong = np.random.default_rng(7), 0
    for _ in range(60):
        test = ErrorRate.begin(ErrorRules(level=0.05))
        for look in range(40):
            rate = 0.3 if 20 <= look < 25 else 0.002
            test = test.update(Count(int(rng.binomial(100, rate)), 100), Count(int(rng.binomial(400, rate)), 400))
        wrong += test.harmed_at is not None
    assert wrong <= 7  # of 60, where 3 are promised: 1 in 100 that this is more by chance


def test_a_look_without_one_of_the_variants_changes_nothing() -> None:
    test = ErrorRate.begin().update(Count(1, 100), Count(0, 100))
    assert test.update(Count(0, 0), Count(5, 10)) == test
    assert test.update(Count(5, 10), Count(0, 0)) == test
    assert test.standing.numbers == {"candidate": 0.01, "control": 0.0}


def test_impossible_rules_are_refused() -> None:
    for tolerated, margin in ((0.5, 0.005), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(SchemeError, match="a tolerated odds ratio of 1 or more and a margin between 0 and 1"):
            ErrorRules(tolerated=tolerated, margin=margin)
