"""kill -9 just before and just after every transition is written down: what is served then is what stands there."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.deploy.gateway.rolling.cohorts import draw

from ..conftest import Live, live
from ..operating.orders import seen
from .traffic import Client, kept, state_is, text

STEPS = [("created", None), ("gated", None), ("shadow", None), ("canary", 0), ("canary", 1), ("promoted", None)]
WEIGHTS = {("canary", 0): 0.3, ("canary", 1): 0.7, ("promoted", None): 1.0}
GOOD: list[tuple[str, int | None, str, str]] = [
    (*move, when, "good.gguf") for move in STEPS for when in ("before", "after")
]
BAD: list[tuple[str, int | None, str, str]] = [
    ("rolled_back", None, when, "garbage.gguf") for when in ("before", "after")
]
PEOPLE = [f"p{number}" for number in range(24)]


def killed(deployment: Path, state: str, step: int | None, when: str) -> None:
    """Serve with traffic until the gateway is killed."""
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), state, str(step), when, str(deployment)]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        if " on http" in line:
            gateway = Live(process, line.split()[-1])
            with Client(gateway) as client, contextlib.suppress(OSError, http.client.HTTPException):
                client.ask_until(gateway, lambda _: False)
        assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("state", "step", "when", "candidate"), GOOD + BAD)
def test_kill_matrix(place: Path, state: str, step: int | None, when: str, candidate: str) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text(candidate, steps="[30, 70]", samples=6))
    killed(deployment, state, step, when)
    found = kept(place) if list(place.glob("*.rollouts.json")) else None
    assert (found is not None and (found["state"], found["step"]) == (state, step)) == (when == "after")

    # What stands written is served: no step follows, for none has samples enough.
    deployment.write_text(text(candidate, steps="[30, 70]", samples=100_000, shadow=0.001))
    with live(deployment) as gateway, Client(gateway) as client:
        now = seen(gateway)["rollout"]
        stood = "created" if found is None else found["state"]
        assert now["state"] == ("shadow" if stood in ("created", "gated") else stood)
        if stood == state == "rolled_back":
            assert [variant["name"] for variant in seen(gateway)["variants"]] == ["old"]
        weight = 0.0 if found is None else WEIGHTS.get((found["state"], found["step"]), 0.0)
        for name in PEOPLE:
            is_meant = draw(now["id"], f"\0{name}") < weight
            assert client.ask({"X-Tersor-Cohort": name})[2] == ("new" if is_meant else "old")
        assert set(client.statuses) == {200}

    # And it comes to the end that it would have come to.
    deployment.write_text(text(candidate, steps="[30, 70]", samples=6))
    with live(deployment) as gateway, Client(gateway) as client:
        after = client.ask_until(gateway, state_is("promoted", "rolled_back"))
        assert after["state"] == ("promoted" if candidate == "good.gguf" else "rolled_back")
        assert after["attempt"] == 1
        moves = [(move["state"], move["step"]) for move in after["history"]]
        assert len(set(moves)) == len(moves)
        assert client.ask()[2] == ("new" if candidate == "good.gguf" else "old")
