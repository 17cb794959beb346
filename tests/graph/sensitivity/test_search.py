from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, cast

import pytest

from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity import search
from tersor.graph.sensitivity.operators import Sensitivity
from tersor.graph.sensitivity.search import Trial, return_to_float


class Fake:
    """Stands for a quantized net: what is measured is which operators are in float, and which have 8 bits."""

    weights = "abcd"

    def __init__(self, left: Collection[str] = (), wide: Collection[str] = (), bits: int = 8) -> None:
        self.left, self.wide, self.bits = frozenset(left), frozenset(wide), bits
        self.recipe = self


@pytest.fixture(autouse=True)
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "with_left", lambda net, left, wide: Fake(left, wide, net.bits))


def ranking(names: str) -> list[Sensitivity]:
    return [Sensitivity(name, "Conv", 1, 0.1, 0.1, 0.5) for name in names]


def run(costs: dict[str, float], order: str, limit: float) -> Any:
    def lost(net: Any) -> float:
        return sum(cost for name, cost in costs.items() if name not in net.left)

    return return_to_float(cast("QuantizedNet", Fake()), lambda: ranking(order), lost, limit)


def climb(costs: dict[str, float], order: str, limit: float, kept: float) -> Any:
    """Search with weights of 4 bits, of whose cost 8 bits leave a share."""

    def lost(net: Any) -> float:
        return sum(cost * (kept if name in net.wide else 1) for name, cost in costs.items() if name not in net.left)

    return return_to_float(cast("QuantizedNet", Fake(bits=4)), lambda: ranking(order), lost, limit)


def fewest(costs: dict[str, float], limit: float) -> int:
    """The slow way: every set of operators, the smallest first."""
    for count in range(len(costs) + 1):
        for left in itertools.combinations(costs, count):
            if sum(cost for name, cost in costs.items() if name not in left) <= limit:
                return count
    raise AssertionError("nothing meets it")


@pytest.mark.parametrize("limit", [0.0, 0.5, 1.0, 2.5, 4.0, 7.0, 9.9, 10.0, 20.0])
def test_with_the_right_ranking_no_smaller_set_meets_the_limit(limit: float) -> None:
    costs = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    found = run(costs, "abcd", limit)
    assert found.meets
    assert len(found.left) == fewest(costs, limit)
    assert found.drop <= limit


def test_with_a_wrong_ranking_what_is_not_needed_goes_back_on_integers() -> None:
    costs = {"a": 0.1, "b": 0.1, "c": 5.0, "d": 0.1}
    found = run(costs, "abcd", 0.5)
    assert found.left == ("c",)
    assert found.net.left == {"c"}


@pytest.mark.parametrize("limit", [1.2, 2.5, 4.0, 7.0, 9.9])
def test_fewer_bits_become_eight_where_that_suffices(limit: float) -> None:
    costs = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    found = climb(costs, "abcd", limit, 0.1)
    assert found.meets
    assert found.left == ()
    enough = [
        count
        for count in range(5)
        if any(
            sum(cost * (0.1 if name in wide else 1) for name, cost in costs.items()) <= limit
            for wide in itertools.combinations(costs, count)
        )
    ]
    assert len(found.wide) == enough[0]
    assert found.net.wide == set(found.wide)


def test_only_where_eight_bits_do_not_suffice_operators_go_back_to_float() -> None:
    found = climb({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "abcd", 0.35, 0.1)
    assert found.meets
    assert found.left == ("a", "b")
    assert found.wide == ("c", "d")
    assert found.drop == pytest.approx(0.3)


def test_nothing_is_returned_where_nothing_is_lost() -> None:
    found = run({"a": 0.1}, "a", 0.2)
    assert found.left == ()
    assert found.trials == (Trial((), 0.1),)


def test_a_limit_that_cannot_be_met_is_said_so() -> None:
    found = run({"a": 1.0, "b": 1.0, "elsewhere": 3.0}, "ab", 1.0)
    assert not found.meets
    assert set(found.left) == {"a", "b"}
    assert found.drop == 3.0


def test_no_set_is_measured_twice() -> None:
    found = run({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "abcd", 2.0)
    assert len({frozenset(trial.left) for trial in found.trials}) == len(found.trials)
    found = climb({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "abcd", 0.35, 0.1)
    assert len({(frozenset(trial.left), frozenset(trial.wide)) for trial in found.trials}) == len(found.trials)
