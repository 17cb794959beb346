"""The knapsack: as good as trying every mix, and never larger than asked."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest

from tersor.analyse.allocation import Frontier, Option, pareto
from tersor.core.errors import SchemeError

NAMES = ("q2", "q3", "q4", "q5", "q6")


def options_of(seed: int, tensors: int) -> dict[str, list[Option]]:
    """Random tensors: more bits cost less, but not always, and some formats are of one size."""
    random = np.random.default_rng(seed)
    found = {}
    for number in range(tensors):
        weights, sensitivity = int(random.integers(10, 400)), float(random.lognormal(0, 2))
        bits = [2.6, 3.4, 4.5, 4.5, 6.6]
        losses = sensitivity * 4.0 ** -np.array(bits) * random.uniform(0.5, 1.5, 5)
        found[f"t{number}"] = [
            Option(name, round(weights * bit), float(loss)) for name, bit, loss in zip(NAMES, bits, losses, strict=True)
        ]
    return found


def best_of_all(options: dict[str, list[Option]], nbytes: int) -> float:
    """The least loss over every mix that fits."""
    return min(
        sum(option.loss for option in mix)
        for mix in product(*options.values())
        if sum(option.nbytes for option in mix) <= nbytes
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_mix_is_as_good_as_the_best_of_all_mixes_and_never_larger_than_asked(seed: int) -> None:
    options = options_of(seed, 5)
    frontier = Frontier(options)
    for share in (0.0, 0.1, 0.35, 0.5, 0.8, 1.0, 1.5):
        nbytes = round(frontier.smallest + share * (frontier.largest - frontier.smallest))
        mix = frontier.at(nbytes)
        chosen = [next(o for o in options[name] if o.name == kind) for name, kind in mix.formats.items()]
        assert mix.nbytes == sum(option.nbytes for option in chosen) <= nbytes
        assert mix.loss == pytest.approx(sum(option.loss for option in chosen))
        assert mix.loss == pytest.approx(best_of_all(options, nbytes), rel=1e-9)


def test_a_coarse_table_still_never_exceeds_and_comes_within_half_a_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.analyse.allocation.STEPS", 50)
    options = options_of(11, 60)
    frontier = Frontier(options)
    for share in np.linspace(0.05, 0.9, 9):
        nbytes = round(frontier.smallest + share * (frontier.largest - frontier.smallest))
        assert 0.995 * nbytes <= frontier.at(nbytes).nbytes <= nbytes


def spent(options: dict[str, list[Option]], nbytes: int) -> dict[str, str]:
    """From the smallest formats on, again and again the change that fits and helps most."""
    mix = {name: min(rows, key=lambda one: (one.nbytes, one.loss)) for name, rows in options.items()}
    while True:
        left = nbytes - sum(one.nbytes for one in mix.values())
        changes = [
            (mix[name].loss - one.loss, name, one)
            for name, rows in options.items()
            for one in rows
            if one.nbytes - mix[name].nbytes <= left and one.loss < mix[name].loss
        ]
        if not changes:
            return {name: one.name for name, one in mix.items()}
        _, name, option = max(changes, key=lambda change: change[0])
        mix[name] = option


@pytest.mark.parametrize("seed", range(6))
def test_bytes_that_the_table_leaves_over_are_spent_on_what_helps_most(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.analyse.allocation.STEPS", 1)  # one step, which nothing fits into: all is left over
    monkeypatch.setattr("tersor.analyse.allocation.STEPS_A_TENSOR", 0)
    options = options_of(seed, 7)
    frontier = Frontier(options)
    shares = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    sizes = [round(frontier.smallest + share * (frontier.largest - frontier.smallest)) for share in shares]
    sizes += [frontier.smallest + front[-1].nbytes - front[0].nbytes for front in frontier.fronts.values()]
    for nbytes in sizes:  # the latter to the last byte
        assert dict(frontier.at(nbytes).formats) == spent(options, nbytes)


def test_the_smallest_mix_that_is_good_enough_is_found() -> None:
    options = options_of(3, 5)
    frontier = Frontier(options)
    wanted = frontier.at((frontier.smallest + frontier.largest) // 2)
    found = frontier.least(wanted.loss)
    assert found.loss <= wanted.loss
    assert found.nbytes <= wanted.nbytes
    fits = [
        sum(option.nbytes for option in mix)
        for mix in product(*options.values())
        if sum(option.loss for option in mix) <= wanted.loss
    ]
    assert found.nbytes == min(fits)


def test_what_cannot_be_reached_is_refused_with_the_nearest() -> None:
    frontier = Frontier(options_of(1, 3))
    with pytest.raises(SchemeError, match=f"smallest mix of these formats takes {frontier.smallest:,}"):
        frontier.at(frontier.smallest - 1)
    with pytest.raises(SchemeError, match="the best mix has"):
        frontier.least(0.0)
    with pytest.raises(SchemeError, match="t has no format"):
        Frontier({"t": []})
    with pytest.raises(SchemeError, match="127 formats at most"):
        Frontier({"t": [Option(str(n), n, 1 / (n + 1)) for n in range(128)]})


def test_beaten_options_are_left_out() -> None:
    options = [Option("a", 4, 1.0), Option("b", 4, 0.5), Option("c", 5, 0.6), Option("d", 6, 0.1)]
    assert [option.name for option in pareto(options)] == ["b", "d"]


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_the_best_of_all_pairs_of_changes(seed: int) -> None:
    frontier = Frontier(options_of(seed, 7))
    mix = frontier.at((frontier.smallest + frontier.largest) // 2)
    nbytes, slack = round(1.05 * mix.nbytes), 4.0
    places = {name: [one.name for one in front].index(mix.formats[name]) for name, front in frontier.fronts.items()}
    wanted = []
    for up, down in product(frontier.fronts, repeat=2):
        if up != down:
            for high, low in product(range(places[up] + 1, len(frontier.fronts[up])), range(places[down])):
                wanted.append(frontier.changed(mix, {up: high, down: low}))
    wanted = [one for one in wanted if one.nbytes <= nbytes and one.loss <= slack * mix.loss]
    wanted.sort(key=lambda one: (one.loss, one.nbytes))
    assert len(wanted) > 8
    for count in (1, 8, len(wanted), len(wanted) + 5):
        found = frontier.neighbours(mix, nbytes, count, slack)
        assert [one.formats for one in found] == [one.formats for one in wanted[:count]]
        assert [one.loss for one in found] == pytest.approx([one.loss for one in wanted[:count]])
    assert frontier.neighbours(frontier.at(frontier.smallest), nbytes, 8, slack) == []


def test_neighbours_of_hundreds_of_tensors_take_no_memory_to_speak_of() -> None:
    frontier = Frontier(options_of(3, 400))
    mix = frontier.at((frontier.smallest + frontier.largest) // 2)
    tracemalloc.start()
    found = frontier.neighbours(mix, mix.nbytes, 8, 1.03)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 8
    assert peak < 8 << 20  # a mix for each of the pairs would take gigabytes
