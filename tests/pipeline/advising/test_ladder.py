"""Which rung is taken, which are not even made, and what is told to try next."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.core.errors import MissingError, SchemeError
from tersor.core.evaluation import Metric
from tersor.core.records import to_json_text
from tersor.pipeline.advising.ladder import Advice, Finding, Goal, Rung, walk
from tersor.pipeline.advising.made import Made


class Ladder:
    """Rungs that remember which of them were made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rungs = folder, list[Rung]()
        self.made: list[str] = []

    def add(
        self, level: int, name: str, nbytes: int, loss: float, speed: float | None = None, *, error: float | None = 0.0,
        expected: int | None = None, failure: Exception | None = None, is_bound: bool = True,
    ) -> None:  # fmt: skip
        def make(folder: Path) -> Made:
            assert folder == self.folder
            self.made.append(name)
            if failure is not None:
                raise failure
            (folder / name).touch()
            low, high = (None, None) if error is None else (loss - error, loss + error)
            metric = Metric("kl_mean", loss, "nats", low, high, 10)
            return Made(name, nbytes, metric, None if speed is None else Metric("speed", speed))

        self.rungs.append(Rung(name, f"{name}'s gain", level, make, expected, is_bound))

    def walked(self, goal: Goal, tell: Callable[[Finding], None] = lambda _one: None) -> Advice:
        return walk("m", self.rungs, goal, self.folder, clock=itertools.count().__next__, tell=tell)


@pytest.fixture
def ladder(tmp_path: Path) -> Ladder:
    made = Ladder(tmp_path)
    made.add(0, "f16", 200, 0.0, 1.0)
    made.add(1, "q8", 100, 0.001, 1.8)
    made.add(2, "q4", 50, 0.05, 2.5)
    made.add(2, "q4 best", 50, 0.02, 2.5)
    made.add(2, "q4 trained", 50, 0.01, 2.5)
    made.add(3, "q2", 30, 0.9, 3.0)
    made.add(3, "q2 best", 30, 0.4, 3.0)
    return made


def verdicts(advice: Advice) -> dict[str, str]:
    return {one.rung: one.verdict for one in advice.findings}


def test_it_stops_at_the_first_rung_that_is_enough(ladder: Ladder) -> None:
    advice = ladder.walked(Goal(0.03, "nats", most_bytes=60))
    assert advice.chosen is not None
    assert (advice.chosen.rung, advice.chosen.seconds) == ("q4 best", 1)
    assert ladder.made == ["f16", "q8", "q4", "q4 best"]
    assert verdicts(advice) == {
        "f16": "too large",
        "q8": "too large",
        "q4": "loses too much",
        "q4 best": "met",
        "q4 trained": "passed over",
        "q2": "passed over",
        "q2 best": "passed over",
    }


def test_cures_are_for_what_loses_too_much_alone(ladder: Ladder) -> None:
    advice = ladder.walked(Goal(0.1, "nats", least_speed=2.9))
    assert ladder.made == ["f16", "q8", "q4", "q2", "q2 best"]
    assert verdicts(advice)["q4"] == "too slow"
    assert advice.chosen is None
    assert advice.next == (
        "allow a loss of 0.4 nats: q2 best would do",
        "of those that keep the quality q4 comes nearest: 2.50× the speed of full precision, not 2.9×",
    )


def test_below_what_no_cure_saves_nothing_is_made(ladder: Ladder) -> None:
    advice = ladder.walked(Goal(0.001, "nats", most_bytes=40))
    assert ladder.made == ["f16", "q8", "q4", "q4 best", "q4 trained"]
    assert advice.chosen is None
    assert verdicts(advice)["q2"] == "passed over"
    assert advice.next == (
        "of those that keep the quality q8 comes nearest: 100 B are above the 40 B that are allowed",
    )


def test_below_what_has_no_cure_the_cures_are_tried(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    ladder.add(0, "f16", 200, 0.0)
    ladder.add(1, "weights", 100, 0.05, is_bound=False)
    ladder.add(2, "ptq", 100, 0.05)
    ladder.add(2, "trained", 100, 0.001)
    advice = ladder.walked(Goal(0.01, "nats", most_bytes=150))
    assert verdicts(advice) == {
        "f16": "too large", "weights": "loses too much", "ptq": "loses too much", "trained": "met",
    }  # fmt: skip


def test_what_is_known_to_be_too_large_is_not_made(ladder: Ladder) -> None:
    ladder.rungs = []
    for number, (name, nbytes, loss) in enumerate((("f16", 200, 0.0), ("q8", 100, 0.001), ("q4", 50, 0.05))):
        ladder.add(number, name, nbytes, loss, expected=nbytes)
    advice = ladder.walked(Goal(0.06, "nats", most_bytes=60))
    assert ladder.made == ["q4"]
    assert advice.findings[0].reason == "200 B are above the 60 B that are allowed"


def test_without_a_size_or_speed_the_smallest_is_taken(ladder: Ladder) -> None:
    advice = ladder.walked(Goal(0.03, "nats"))
    assert ladder.made == ["f16", "q8", "q4", "q4 best", "q2", "q2 best"]
    assert advice.chosen is not None
    assert advice.chosen.rung == "q4 best"
    assert advice.next[0].startswith("what is smaller loses too much: q2 best: ")


def test_an_estimate_within_a_wide_interval_is_likely_and_asks_for_more_data(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    ladder.add(0, "int8", 10, 0.4, error=0.3)
    advice = ladder.walked(Goal(0.5, "points", most_bytes=10))
    assert advice.chosen is not None
    assert advice.chosen.verdict == "likely met"
    assert "give more data" in advice.next[0]
    ladder = Ladder(tmp_path)
    ladder.add(0, "int8 again", 10, 0.6, error=0.3)
    assert ladder.walked(Goal(0.5, "points", most_bytes=10)).chosen is None


def test_the_loss_to_allow_is_that_which_the_interval_reaches(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    ladder.add(0, "unsure", 10, 0.6, error=0.5)
    ladder.add(0, "sure", 10, 0.8, error=0.05)
    ladder.add(0, "worse", 10, 0.9, error=0.01)
    advice = ladder.walked(Goal(0.1, "nats", most_bytes=10))
    assert advice.next == ("allow a loss of 0.85 nats: sure would do",)
    ladder = Ladder(tmp_path)
    ladder.add(0, "without an interval", 10, 0.7, error=None)
    ladder.add(0, "sure again", 10, 0.8, error=0.05)
    assert ladder.walked(Goal(0.1, "nats", most_bytes=10)).next == (
        "allow a loss of 0.7 nats: without an interval would do",
    )


def test_what_cannot_be_made_is_told_and_its_cure_is_tried(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    ladder.add(0, "static", 10, 0.1, failure=MissingError("no calibration data\nmore"))
    ladder.add(0, "weights alone", 10, 0.1)
    advice = ladder.walked(Goal(0.5, "nats", most_bytes=10))
    assert advice.findings[0].reason == "no calibration data"
    assert advice.chosen is not None
    assert advice.chosen.rung == "weights alone"
    ladder.add(1, "broken", 1, 0.1, failure=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        ladder.walked(Goal(0.5, "nats", most_bytes=5))


def test_every_finding_is_told_as_it_comes_and_written_as_json(ladder: Ladder) -> None:
    told: list[Finding] = []
    advice = ladder.walked(Goal(0.03, "nats", most_bytes=60), told.append)
    assert tuple(told) == advice.findings
    document = json.loads(to_json_text(advice.to_object()))
    assert (document["schema"], document["chosen"], document["is_met"]) == ("tersor.advice/1", "q4 best", True)


@pytest.mark.parametrize(
    "wrong", [{"most_loss": -1}, {"most_bytes": 0}, {"least_speed": 0}, {"most_loss": float("nan")}]
)
def test_goals_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SchemeError):
        Goal(**{"most_loss": 0.1, "unit": "nats", **wrong})  # type: ignore[arg-type]


def test_what_was_finished_before_a_kill_is_not_made_again(ladder: Ladder) -> None:
    goal = Goal(0.03, "nats", most_bytes=60)
    first = ladder.walked(goal)
    made, ladder.made = ladder.made, []
    again = ladder.walked(goal)
    assert ladder.made == []
    assert again.chosen is not None
    assert [replace(one, seconds=0) for one in again.findings] == [replace(one, seconds=0) for one in first.findings]
    assert all(one.seconds >= old.seconds for one, old in zip(again.findings, first.findings, strict=True))
    (ladder.folder / "q4").unlink()  # its artefact is gone
    next(ladder.folder.glob("rung-*.json")).write_text("{")  # and this one is not whole
    ladder.walked(goal)
    assert 1 <= len(ladder.made) <= 2
    assert set(ladder.made) <= set(made)
    assert "q4" in ladder.made
