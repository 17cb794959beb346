"""The test of agreement against exact probabilities: every path of agreeing and differing answers, summed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.sequential import Agreement, AgreementRules

RULES = AgreementRules(level=0.05, safe_level=0.05, reopens=0)


def crossing_probability(agreement: float, alternative: float, claim: float, level: float, samples: int) -> float:
    """Probability that the likelihood ratio reaches 1/level within `samples`, exactly: by the number of differences."""
    agree, differ = math.log(alternative / claim), math.log((1 - alternative) / (1 - claim))
    alive, crossed = np.zeros(samples + 1), 0.0
    alive[0] = 1.0
    for n in range(1, samples + 1):
        alive[1:], alive[0] = alive[1:] * agreement + alive[:-1] * (1 - agreement), alive[0] * agreement
        differences = np.arange(samples + 1)
        over = differences * differ + (n - differences) * agree >= -math.log(level)
        crossed += float(alive[over].sum())
        alive[over] = 0
    return crossed


def answers(agreement: float, runs: int, samples: int, seed: int) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).random((runs, samples)) < agreement


def crossings(runs: npt.NDArray[Any], rules: AgreementRules) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Samples to "harmful" and to "safe" of every run; infinite where it did not come to that."""
    found = [Agreement.begin(rules).update(run) for run in runs]
    harm, safe = (
        [test.crossed_at or math.inf for test in purses]
        for purses in zip(*((f.harm, f.safe) for f in found), strict=True)
    )
    return np.array(harm), np.array(safe)


@pytest.mark.parametrize("agreement", [0.99, 0.97, 0.95])
def test_how_often_it_says_harmful_or_safe_is_what_summing_over_all_paths_gives(agreement: float) -> None:
    runs, samples = 600, 400
    harm, safe = crossings(answers(agreement, runs, samples, 1), RULES)
    for found, ratio in ((harm, (0.95, 0.99)), (safe, (0.99, 0.97))):
        expected = crossing_probability(agreement, *ratio, 0.05, samples)
        error = math.sqrt(expected * (1 - expected) / runs)
        assert abs(np.isfinite(found).mean() - expected) <= 3.5 * error + 1e-9


def test_both_verdicts_are_wrong_no_more_often_than_promised_at_any_look_for_ever() -> None:
    # At the border of each claim, where it is hardest; 5000 looks, exactly.
    assert 0.01 < crossing_probability(0.99, 0.95, 0.99, 0.05, 5000) <= 0.05
    assert 0.01 < crossing_probability(0.97, 0.99, 0.97, 0.05, 5000) <= 0.05


def test_an_agreement_of_95_instead_of_99_percent_is_found_within_a_median_of_100_requests() -> None:
    harm, _ = crossings(answers(0.95, 400, 1500, 2), AgreementRules())
    assert np.median(harm) <= 100
    assert np.isfinite(harm).all()


def test_a_perfect_candidate_is_safe_after_147_requests_and_never_harmful() -> None:
    test = Agreement.begin().update(np.ones(3000))
    assert test.safe.crossed_at == 147  # the first whole number above log 20 / log(0.99 / 0.97)
    assert test.standing.verdict == "safe"
    assert test.harm.peak == 0


def test_it_turns_from_safe_to_harmful_when_a_candidate_breaks_late() -> None:
    good, bad = answers(0.995, 1, 5000, 3)[0], answers(0.9, 1, 400, 4)[0]
    test = Agreement.begin().update(good)
    assert test.standing.verdict == "safe"
    after = test.update(bad)
    assert after.standing.verdict == "harmful"
    assert after.harm.crossed_at is not None
    assert 5000 < after.harm.crossed_at < 5200


def test_answers_that_agree_in_part_are_refuted_no_more_often_than_whole_ones() -> None:
    rng = np.random.default_rng(5)
    shares = rng.beta(9.9, 0.1, size=(400, 1000))  # mean 0.99, spread wide
    parts, _ = crossings(shares, RULES)
    assert np.isfinite(parts).mean() <= 0.05
    worse, _ = crossings(rng.beta(9, 1, size=(100, 500)), RULES)
    assert np.isfinite(worse).all()


def test_its_standing_says_how_near_it_is() -> None:
    standing = Agreement.begin().update([1, 0, 1, 0.5]).standing
    assert standing.numbers == {"agreement": 0.625}
    assert (standing.verdict, standing.samples, standing.to_safe) == ("undecided", 4, 0.0)
    assert 0.4 < standing.to_harm < 0.6
    assert math.isnan(Agreement.begin().standing.numbers["agreement"])


def test_bad_input_is_refused() -> None:
    for good, bad, design in ((1.0, 0.97, 0.95), (0.99, 0.995, 0.95), (0.99, 0.97, 0.99), (0.99, 0.0, 0.95)):
        with pytest.raises(SchemeError, match="0 < bad < good < 1"):
            AgreementRules(good=good, bad=bad, design=design)
    for answer in ([1.5], [-0.1], [math.nan], [[1.0]]):
        with pytest.raises(ShapeError, match="agreement is one row of numbers in 0 … 1"):
            Agreement.begin().update(answer)
