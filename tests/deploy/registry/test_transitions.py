"""The history of a name against a model of it that keeps a plain list, whatever is done and whatever the clock does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.texts import timestamp

from .conftest import NAMES, Clock

Step: TypeAlias = tuple[str, int, float]

STEPS = st.lists(
    st.tuples(st.sampled_from(["deploy", "shift", "rollback", "undeploy"]), st.integers(0, 2),
              st.sampled_from([0.0, 0.05, 1.0, -3600.0, 60.0])),
    max_size=25,
)  # fmt: skip


class Model:
    """What should stand under one name: `trail` is where rollbacks would lead, the nearest last."""

    def __init__(self) -> None:
        self.now: tuple[str, str, str | None, float] | None = None  # state, artefact, candidate, weight
        self.trail: list[str] = []
        self.log: list[tuple[str, str, str | None, float]] = []

    def do(self, action: str, artefact: str, weight: float) -> bool:
        """Take one step; False where it must be refused."""
        wanted = self._wanted(action, artefact, weight)
        if wanted is None:
            return False
        if wanted == self.now:
            return True
        if action != "rollback" and self.now is not None and self.now[0] == "serving":
            self.trail.append(self.now[1])
        self.now = wanted
        self.log.append(wanted)
        return True

    def _wanted(self, action: str, artefact: str, weight: float) -> tuple[str, str, str | None, float] | None:
        if action == "deploy":
            return ("serving", artefact, None, 0.0)
        if self.now is None:
            return None
        state, primary, _, _ = self.now
        if action == "undeploy":
            return self.now if state == "stopped" else ("stopped", primary, None, 0.0)
        if action == "shift":
            return None if state == "stopped" or artefact == primary else ("canary", primary, artefact, weight)
        while state == "serving" and self.trail and self.trail[-1] == primary:
            self.trail.pop()
        return ("serving", self.trail.pop(), None, 0.0) if self.trail else None


def take(registry: Registry, action: str, artefact: str, weight: float) -> None:
    if action == "deploy":
        registry.deploy("chat", artefact, who="ann")
    elif action == "shift":
        registry.shift("chat", artefact, state="canary", weight=weight, who="ann")
    elif action == "rollback":
        registry.rollback("chat", who="ann")
    else:
        registry.undeploy("chat", who="ann")


@settings(max_examples=30, deadline=None)
@given(STEPS)
@example([("deploy", 0, 60.0), ("deploy", 1, -3600.0), ("deploy", 2, 60.0), ("rollback", 0, 0.0), ("rollback", 0, 0.0)])
@example([("deploy", 0, 60.0), ("undeploy", 0, 60.0), ("deploy", 0, 60.0), ("rollback", 0, 0.0)])
@example([("deploy", 0, 60.0), ("deploy", 1, 60.0), ("undeploy", 0, 60.0), ("deploy", 2, 60.0), ("rollback", 0, 0.0)])
@example([("deploy", 0, 60.0), ("shift", 1, 0.05), ("shift", 2, 1.0), ("deploy", 2, 60.0), ("rollback", 0, 0.0)])
def test_the_history_is_what_was_done_in_the_order_in_which_it_was_done(steps: list[Step]) -> None:
    clock, model, times = Clock(), Model(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Registry.open(folder, mode="create", clock=clock) as registry:
            for each in NAMES:
                (folder / f"{each}.gguf").write_bytes(b"GGUF" + each.encode())
                registry.add_artefact(each, folder / f"{each}.gguf", who="ann")
            for action, index, number in steps:
                clock.advance(number)
                before, weight = len(model.log), number if 0 <= number <= 1 else 0.5
                if model.do(action, f"{NAMES[index]}:1", weight):
                    take(registry, action, NAMES[index], weight)
                    times += [timestamp(clock.now)] * (len(model.log) - before)
                else:
                    with pytest.raises(SchemeError, match=r"^chat: "):
                        take(registry, action, NAMES[index], weight)
            check(registry, model, times)
        with Registry.open(folder) as registry:
            check(registry, model, times)


def check(registry: Registry, model: Model, times: list[str]) -> None:
    """Everything that the registry says of the name is what the model says."""
    now = registry.serving("chat")
    is_on = model.now is not None and model.now[0] != "stopped"
    assert (now is not None) == is_on
    if not model.log:
        return
    found: list[Any] = []
    for row in registry.history("chat"):
        here = row.deployment
        found.append(((here.state, here.artefact, here.candidate, here.weight), here.since, row.until))
        assert row.seconds is None or row.seconds >= 0
    ends = [*times[1:], None]
    everything = list(zip(model.log, times, ends, strict=True))
    assert found == [each for each in everything if each[0][0] != "stopped"]
    if now is not None:
        assert found[-1] == ((now.state, now.artefact, now.candidate, now.weight), now.since, None)
    ids = [row.deployment.id for row in registry.history("chat")]
    assert ids == sorted(set(ids))
