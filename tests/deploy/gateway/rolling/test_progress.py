"""The moves of a rollout as pure functions, and a gateway that takes them up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.deploy.gateway.rolling.progress import (
    Move,
    Progress,
    advanced,
    begun,
    paused,
    refitted,
    resumed,
    stands,
    weight_of,
)
from tersor.deploy.rollout.plan import RolloutPlan

from ..conftest import live
from ..operating.orders import seen
from .test_harm import rolling

AT, WHO, WHY = "2027-01-01T00:00:00Z", "ann", "it is due"
OLD = RolloutPlan()


def at_a_quarter() -> Progress:
    now = begun("q8", "q4", ("a", "b"), None, Move(AT, "created", None, 0.0, WHO, WHY))
    for _ in range(5):
        now = advanced(now, OLD, AT, WHO, WHY)
    assert (now.state, now.step, weight_of(now)) == ("canary", 2, 0.25)
    return replace(now, samples=70, elapsed_s=9.0)


@pytest.mark.parametrize(
    ("steps", "step", "weight"),
    [
        ((10.0, 50.0, 100.0), 0, 0.1),
        ((5.0, 25.0, 100.0), 1, 0.25),
        ((50.0, 100.0), 0, 0.5),
        ((2.0,), 0, 0.02),
    ],
)
def test_other_steps_let_it_go_on_no_higher_than_it_came(steps: tuple[float, ...], step: int, weight: float) -> None:
    plan, now = RolloutPlan(steps=steps), at_a_quarter()
    assert not stands(now, plan)
    assert weight_of(now) == 0.25  # until the move is written down
    for before in (now, paused(now, OLD, AT, WHO, WHY)):
        after = refitted(before, plan, AT, WHO, "other steps")
        assert stands(after, plan)
        assert (after.state, after.step, weight_of(after), after.samples) == (before.state, step, weight, 0)
        assert after.history[-1] == Move(AT, before.state, step, weight, WHO, "other steps")


@pytest.mark.parametrize("steps", [OLD.steps, (1.0, 5.0, 25.0), (2.0, 3.0, 25.0, 30.0)])
def test_steps_that_leave_its_own_leave_it_alone(steps: tuple[float, ...]) -> None:
    now = at_a_quarter()
    assert stands(now, RolloutPlan(steps=steps))
    held = paused(now, OLD, AT, WHO, WHY)
    assert weight_of(held) == weight_of(resumed(held, OLD, AT, WHO, WHY)) == 0.25


def test_a_gateway_goes_on_at_the_step_that_fits(tmp_path: Path) -> None:
    with rolling(tmp_path, "plain", samples=100_000) as gateway:
        assert seen(gateway, "net")["rollout"]["state"] == "shadow"
    (path,) = tmp_path.glob("*.rollouts.json")
    kept = json.loads(path.read_text())
    row = kept["models"]["net"]
    row.update(state="canary", step=2)  # as if it had come there by steps of 1, 5 and 25 percent
    row["history"].append({**row["history"][-1], "state": "canary", "step": 2, "weight": 0.25})
    path.write_text(json.dumps(kept))
    deployment = tmp_path / "deploy.yaml"
    deployment.write_text(deployment.read_text().replace("[50, 100]", "[10, 50, 100]"))
    with live(deployment) as gateway:
        found = seen(gateway, "net")["rollout"]
    assert (found["state"], found["step"], found["weight"]) == ("canary", 0, 0.1)
    assert (found["since"]["why"], found["since"]["who"]) == ("the deployment names other steps", "rollout")
