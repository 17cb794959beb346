"""Whom a gateway tells of what: silences, and plans that change while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tersor.core.errors import MissingError, SchemeError
from tersor.deploy.alerting.alarms import Alarms
from tersor.deploy.alerting.plan import MailPlan, MonitorPlan, Silence

from .receivers import Hook
from .test_delivery import until

WALL = 1_800_000_000.0
BAD, GOOD = {"engine_down": 1.0}, {"engine_down": 0.0}
MAIL = MailPlan("127.0.0.1", "g@x.org", ("a@x.org",))


def silence(until_: float, model: str = "") -> Silence:
    return Silence("EngineDown", datetime.fromtimestamp(until_, UTC).isoformat(), model)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    with made.running() as address:
        monkeypatch.setenv("HOOK", address)
        yield made


def told(hook: Hook) -> list[tuple[str, str]]:
    return [(one["model"], one["state"]) for one in hook.documents]


def plan(*silences: Silence) -> MonitorPlan:
    return MonitorPlan({}, webhook_env="HOOK", limits={"EngineDown": {"for_s": 0}}, silences=silences)


def test_a_silenced_alert_is_seen_and_not_told(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(plan(silence(WALL + 60, "m")))
    caplog.set_level(logging.WARNING)
    assert len(alarms.look(0, WALL, {("m", "q"): BAD, ("n", "q"): BAD})) == 2
    assert len(alarms.look(1, WALL + 1, {("m", "q"): GOOD, ("n", "q"): GOOD})) == 2
    alarms.look(99, WALL + 99, {("m", "q"): GOOD})
    until(lambda: len(hook.documents) == 2)
    alarms.close()
    assert told(hook) == [("n", "firing"), ("n", "resolved")]
    assert "m/q" not in caplog.text


def test_what_still_fires_when_its_silence_ends_is_told_then(hook: Hook) -> None:
    alarms = Alarms(plan(silence(WALL + 60)))
    assert alarms.look(0, WALL, {("m", "q"): BAD})
    assert not alarms.look(59, WALL + 59, {("m", "q"): BAD})
    assert hook.documents == []
    assert not alarms.look(60, WALL + 60, {("m", "q"): BAD})
    assert not alarms.look(61, WALL + 61, {("m", "q"): BAD})
    alarms.look(62, WALL + 62, {("m", "q"): GOOD})
    until(lambda: len(hook.documents) == 2)
    alarms.close()
    assert told(hook) == [("m", "firing"), ("m", "resolved")]


def test_what_began_in_a_silence_is_told_after_it_by_the_next_gateway_too(hook: Hook) -> None:
    first = Alarms(plan(silence(WALL + 60, "m")))
    first.look(0, WALL, {("m", "q"): BAD, ("n", "q"): BAD})
    until(lambda: len(hook.documents) == 1)
    first.close()
    kept = first.to_object()
    second = Alarms(plan(silence(WALL + 60, "m")))
    second.restore([*kept, 3, {"told": False}])
    assert second.untold == {("EngineDown", "m", "q")}
    second.look(30, WALL + 30, {("m", "q"): BAD, ("n", "q"): BAD})
    second.look(61, WALL + 61, {("m", "q"): BAD, ("n", "q"): BAD})
    until(lambda: len(hook.documents) == 2)
    second.close()
    third = Alarms(plan())  # and is told once
    third.restore(second.to_object())
    third.look(70, WALL + 70, {("m", "q"): GOOD, ("n", "q"): BAD})
    until(lambda: len(hook.documents) == 3)
    third.close()
    assert told(hook) == [("n", "firing"), ("m", "firing"), ("m", "resolved")]


def test_an_end_inside_of_a_silence_is_not_told(hook: Hook) -> None:
    alarms = Alarms(plan())
    alarms.look(0, WALL, {("m", "q"): BAD})
    until(lambda: len(hook.documents) == 1)
    alarms.change(plan(silence(WALL + 60)), alarms.delivery)
    assert alarms.look(1, WALL + 1, {("m", "q"): GOOD})
    alarms.close()
    assert told(hook) == [("m", "firing")]


def test_what_ends_as_soon_as_its_silence_is_lifted_is_not_told(hook: Hook) -> None:
    alarms = Alarms(plan(silence(WALL + 60)))
    alarms.look(0, WALL, {("m", "q"): BAD})
    alarms.change(plan(), alarms.delivery)
    assert alarms.look(1, WALL + 1, {("m", "q"): GOOD, ("n", "q"): BAD})
    until(lambda: len(hook.documents) == 1)
    alarms.close()
    assert told(hook) == [("n", "firing")]


def test_a_plan_that_changes_moves_limits_and_keeps_what_fires_and_who_is_told(hook: Hook) -> None:
    alarms = Alarms(plan())
    alarms.look(0, WALL, {("m", "q"): BAD})
    later = replace(plan(), limits={"EngineDown": {"for_s": 100}})
    delivery = alarms.prepared(later)
    assert delivery is alarms.delivery
    alarms.change(later, delivery)
    assert not alarms.look(1, WALL + 1, {("m", "q"): BAD, ("n", "q"): BAD})
    assert [one.state for one in alarms.book.alerts.values()] == ["firing", "pending"]
    alarms.close()


def test_another_webhook_takes_over_and_one_that_is_not_there_changes_nothing(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms, other, before = Alarms(plan()), Hook(), set(threading.enumerate())
    with other.running() as address:
        with pytest.raises(MissingError, match=r"monitor\.webhook_env: the environment variable OTHER holds no URL"):
            alarms.prepared(replace(plan(), webhook_env="OTHER"))
        monkeypatch.setenv("OTHER", "hush")
        with pytest.raises(SchemeError, match=r"monitor\.webhook_env, OTHER: the webhook is no URL"):
            alarms.prepared(replace(plan(), webhook_env="OTHER"))
        monkeypatch.setenv("OTHER", address)
        alarms.look(0, WALL, {("m", "q"): BAD})
        later = replace(plan(), webhook_env="OTHER", mail=MAIL)
        alarms.change(later, alarms.prepared(later))
        alarms.look(1, WALL + 1, {("m", "q"): GOOD})
        until(lambda: len(hook.documents) == len(other.documents) == 1)
        alarms.delivery.close(0.0)
        until(lambda: not [one for one in set(threading.enumerate()) - before if one.name.startswith("alerts to")])
    assert (told(hook), told(other)) == ([("m", "firing")], [("m", "resolved")])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Silence("EngineUp", "2027-01-02T03:04:05Z"), "silences: no alert 'EngineUp'; there are EngineDown"),
        (lambda: Silence("EngineDown", "tomorrow"), "until 'tomorrow' is no time with its zone"),
        (lambda: Silence("EngineDown", "2027-01-02T03:04:05"), "is no time with its zone"),
        (lambda: MonitorPlan({}, webhook_env="http://h/hush"), "the name of an environment variable is wanted"),
        (lambda: MonitorPlan({}, limits={"EngineUp": 1}), "limits: no alert 'EngineUp'"),
        (lambda: MonitorPlan({}, refresh=("",)), "refresh: a list of words is wanted"),
        (lambda: replace(MAIL, to=()), "must be a plain address"),
        (lambda: replace(MAIL, sender="Ann <a@x.org>"), "must be a plain address"),
        (lambda: replace(MAIL, to=("a@x.org\nBcc: b@x.org",)), "must be a plain address"),
        (
            lambda: replace(MAIL, security="ssl"),  # type: ignore[arg-type]  # what YAML may bring
            "starttls, tls or none, not 'ssl'",
        ),
        (lambda: replace(MAIL, user="ann"), "user needs password_env"),
        (lambda: replace(MAIL, user="ann", password_env="hush"), "user needs password_env"),
        (lambda: replace(MAIL, user="a", password_env="A", security="none"), "over an encrypted connection only"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(made: object, words: str) -> None:
    assert callable(made)
    with pytest.raises(SchemeError, match=words):
        made()
