"""A rollout whose artefacts stand in a registry: only what passed its gate is tried, and the history shows it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tersor.deploy.registry.registry import Registry

from ..conftest import Live, live
from ..operating.orders import answered_by, ordered, seen
from .traffic import Client, text


def test_the_gate_comes_first_and_the_history_shows_each_move(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text("registry: .\n" + text(samples=100_000))
    with Registry.open(place, mode="create") as registry:
        registry.add_artefact("full", place / "full.gguf", who="ann")
        registry.add_artefact("good", place / "good.gguf", who="ann", baseline="full")
    with live(deployment) as gateway, Client(gateway) as client:
        found = seen(gateway)["rollout"]
        assert (found["state"], client.ask()[2]) == ("rolled_back", "old")
        assert "may not serve" in found["since"]["why"]
        with Registry.open(place, mode="write") as registry:
            registry.record_verdict("good", "pass", {"kl_mean": 0.01}, who="gate")
        assert ordered(gateway, "start", "demo")[1]["state"] == "shadow"
        assert ordered(gateway, "promote", "demo")[1]["state"] == "promoted"
        assert client.ask()[2] == "new"
    with live(deployment) as gateway, Client(gateway) as client:
        assert client.ask()[2] == "new"
        assert ordered(gateway, "abort", "demo")[1]["state"] == "rolled_back"
        assert client.ask()[2] == "old"
    with Registry.open(place, mode="read") as registry:
        rows = [(row.deployment.state, row.deployment.artefact) for row in registry.history("demo")]
    assert ("shadow", "full:1") in rows
    assert ("serving", "good:1") in rows
    assert rows[-1] == ("serving", "full:1")


BEHIND = """
registry: .
models:
  demo:
    primary: old
    candidate: new
    fallback: full
    variants:
      old: {engine: llama.cpp, path: bad.gguf, context: 512}
      new: {engine: llama.cpp, path: good.gguf, context: 512}
      full: {engine: llama.cpp, path: full.gguf, context: 512}
"""


@pytest.fixture
def behind(place: Path) -> Path:
    """A deployment with a candidate and, behind both, full precision; all may serve."""
    with Registry.open(place, mode="create") as registry:
        registry.add_artefact("full", place / "full.gguf", who="ann")
        for name in ("bad", "good"):
            registry.add_artefact(name, place / f"{name}.gguf", who="ann", baseline="full")
            registry.record_verdict(name, "pass", {}, who="gate")
    path = place / "deploy.yaml"
    path.write_text(BEHIND)
    return path


@contextlib.contextmanager
def gone_on(gateway: Live, deployment: Path, how: str) -> Iterator[Live]:
    """The gateway after a reload, or another one after a signal."""
    if how == "reload":
        assert ordered(gateway, "reload")[0] == 200
        yield gateway
        return
    gateway.process.send_signal(signal.Signals[how])
    gateway.process.wait(timeout=30)
    with live(deployment) as again:
        yield again


@pytest.mark.parametrize("how", ["reload", "SIGTERM", "SIGKILL"])
def test_a_rollback_after_a_promotion_holds_until_somebody_restores(behind: Path, how: str) -> None:
    with live(behind) as gateway:
        assert ordered(gateway, "promote", "demo")[1]["state"] == "promoted"
        assert answered_by(gateway) == "new"
        assert ordered(gateway, "rollback", "demo", why="it lies")[0] == 200
        assert answered_by(gateway) == "full"
        with gone_on(gateway, behind, how) as after:
            assert answered_by(after) == "full"
            assert (seen(after)["state"], seen(after)["since"]["why"]) == ("rolled back", "it lies")
            with Registry.open(behind.parent) as registry:
                rows = [row.deployment for row in registry.history("demo")]
            assert (rows[-1].action, rows[-1].artefact) == ("rollback", "full:1")
            assert ordered(after, "restore", "demo")[0] == 200
            assert answered_by(after) == "new"
