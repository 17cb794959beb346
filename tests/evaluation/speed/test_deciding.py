"""The fastest of several is found under noise, with more rounds only while two are close."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.evaluation.speed.deciding import CLOSE, leader, paired_ratio, undecided


def noisy(ratios: list[float], rounds: int, seed: int) -> list[list[float]]:
    """Times of a machine that is busy for some rounds, and disturbs one now and then."""
    random = np.random.default_rng(seed)
    busy = np.exp(random.choice([0.0, 1.5], rounds, p=[0.6, 0.4]) + 0.3 * random.standard_normal(rounds))
    alone = np.exp(np.where(random.random((len(ratios), rounds)) < 0.15, 1.0, 0.0))
    jitter = np.exp(0.03 * random.standard_normal((len(ratios), rounds)))
    found: list[list[float]] = (np.asarray(ratios)[:, None] * busy * alone * jitter).tolist()
    return found


def decided(ratios: list[float], seed: int, *, least: int = 15, most: int = 60) -> tuple[int, list[int]]:
    """Which is taken, and after how many rounds each dropped out."""
    times = noisy(ratios, most, seed)
    blocks: list[list[float]] = [[] for _ in ratios]
    racing = list(range(len(ratios)))
    for number in range(most):
        if number >= least:
            racing = [racing[index] for index in undecided([blocks[index] for index in racing])]
        if not racing:
            break
        for index in racing:
            blocks[index].append(times[index][number])
    return leader(blocks), [len(one) for one in blocks]


def test_what_is_taken_is_within_five_percent_of_the_best_however_busy_the_machine_is() -> None:
    ratios = [1.05, 1.3, 1.0, 1.01, 1.12]
    taken = [ratios[decided(ratios, seed)[0]] for seed in range(100)]
    assert max(taken) <= 1.05
    assert sum(value > 1.01 for value in taken) <= 2


def test_absolute_times_would_have_gone_wrong_where_the_machine_got_busier() -> None:
    first, second = [1.1] * 4 + [4.4] * 5, [1.0] * 2 + [4.0] * 7  # the second ran in more busy rounds of its own
    assert np.median(first[:8]) < np.median(second)
    assert leader([first, [each / 1.1 for each in first]]) == 1
    assert paired_ratio(first, [each / 1.1 for each in first]) == pytest.approx(1.1)


def test_clear_cases_end_at_once_and_close_ones_take_more_rounds() -> None:
    clear = [decided([1.0, 1.5, 2.0], seed)[1] for seed in range(20)]
    assert np.mean([max(one) for one in clear]) < 25
    close = [decided([1.0, 1.05, 2.0], seed)[1] for seed in range(20)]
    assert np.mean([max(one) for one in close]) > 1.2 * np.mean([max(one) for one in clear])
    assert np.mean([one[2] for one in close]) < 25


def test_equal_ones_end_once_they_are_known_to_be_close() -> None:
    flat = [[1.0] * 9, [1.0 + CLOSE / 2] * 9]
    assert undecided(flat) == []
    assert undecided([times[:7] for times in flat]) == [0, 1]  # too few rounds for 99 %


def test_one_alone_is_the_fastest() -> None:
    assert undecided([[1.0]]) == []
    assert leader([[1.0]]) == 0


def test_who_dropped_out_is_not_taken_and_ratios_are_of_the_rounds_that_both_ran() -> None:
    assert leader([[0.5, 0.5], [1.0, 1.0, 1.0], [1.1, 1.1, 1.1]]) == 1
    assert paired_ratio([2.0, 2.0], [1.0, 1.0, 50.0]) == 2.0
