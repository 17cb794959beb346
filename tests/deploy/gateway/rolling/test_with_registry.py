"""A rollout whose artefacts stand in a registry: only what passed its gate is tried, and the history shows it."""

from __future__ import annotations

from pathlib import Path

from tersor.deploy.registry.registry import Registry

from ..conftest import live
from ..operating.orders import ordered, seen
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
