"""With a registry: what serves is what it knows, and it knows what served when."""

from __future__ import annotations

from pathlib import Path

from tersor.deploy.registry.registry import Registry

from ..conftest import live
from .orders import answered_by, ordered, seen


def served(folder: Path) -> list[tuple[str, str, str | None, str]]:
    """Action, artefact, fallback and who, of everything that served."""
    with Registry.open(folder) as opened:
        rows = [interval.deployment for interval in opened.history("demo")]
    return [(row.action, row.artefact, row.fallback, row.who) for row in rows]


def test_what_served_when_is_recorded_and_a_rollback_outlives_a_kill(registered: Path) -> None:
    options = ("--who", "ann")
    folder = registered.parent
    with live(registered, *options) as gateway:
        assert served(folder) == [("deploy", "small:1", "full:1", "ann")]
        known = {variant["name"]: variant["registered"] for variant in seen(gateway)["variants"]}
        assert (known["quantized"]["artefact"], known["quantized"]["gate"]["outcome"]) == ("small:1", "pass")
        assert (known["full"]["artefact"], known["full"]["gate"]) == ("full:1", None)
        assert answered_by(gateway) == "quantized"
        assert ordered(gateway, "rollback", "demo", why="it repeats itself")[0] == 200
        assert answered_by(gateway) == "full"
        gateway.process.kill()
    assert served(folder)[1:] == [("rollback", "full:1", None, "ann")]
    with live(registered, *options) as gateway:
        assert answered_by(gateway) == "full"
        found = seen(gateway)
        assert (found["state"], found["since"]["why"]) == ("rolled back", "it repeats itself")
        with Registry.open(folder, mode="write") as opened:
            opened.record_verdict("small", "fail", {}, who="gate")
        status, told = ordered(gateway, "restore", "demo")
        assert status == 409
        assert "small:1 may not serve: it failed its gate" in told["error"]["message"]
        assert answered_by(gateway) == "full"
        with Registry.open(folder, mode="write") as opened:
            opened.override("small", who="bob", why="ticket 7")
        assert ordered(gateway, "restore", "demo", why="mended")[0] == 200
        assert answered_by(gateway) == "quantized"
        assert seen(gateway)["variants"][0]["registered"]["override"]["who"] == "bob"
        assert ordered(gateway, "unload", "demo")[0] == 200
    assert served(folder)[2:] == [("deploy", "small:1", "full:1", "ann")]
    with Registry.open(folder) as opened:
        assert opened.serving("demo") is None
        events = [(row.what, row.details["result"]) for row in opened.events() if row.details.get("log") == "audit"]
    done = [("rollback", "begun"), ("rollback", "done"), ("restore", "begun"), ("restore", "failed")]
    assert events == [*done, ("restore", "begun"), ("restore", "done"), ("unload", "begun"), ("unload", "done")]


def test_a_rollback_that_cannot_be_recorded_is_not_done(registered: Path) -> None:
    with live(registered) as gateway, Registry.open(registered.parent, mode="write", is_exclusive=True):
        status, told = ordered(gateway, "rollback", "demo")
        assert status == 503
        assert "another process" in told["error"]["message"] or "writing" in told["error"]["message"]
        assert answered_by(gateway) == "quantized"
