"""Rollouts with real engines and real traffic: a good candidate goes through, a bad one goes back."""

from __future__ import annotations

import http.client
import json
import os
import signal
from pathlib import Path

from tersor.deploy.rollout.decision import replayed

from ..conftest import live
from ..operating.orders import JSON, ordered, seen
from .traffic import Client, kept, state_is, text


def test_a_good_candidate_is_promoted_step_by_step(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text(steps="[20, 60]"))
    with live(deployment) as gateway, Client(gateway) as client:
        assert client.ask()[2] == "old"
        found = client.ask_until(gateway, state_is("promoted", "rolled_back"))
        assert found["state"] == "promoted", found
        assert client.ask()[2] == "new"
    assert set(client.statuses) == {200}
    states = [(move["state"], move["weight"]) for move in found["history"]]
    assert states == [("created", 0), ("gated", 0), ("shadow", 0), ("canary", 0.2), ("canary", 0.6), ("promoted", 1)]
    rows = kept(place)["decisions"]
    assert [row["decision"]["action"] for row in rows] == ["PROMOTE_STEP"] * 3
    assert all(replayed(row["decision"]).action == "PROMOTE_STEP" for row in rows)


def test_a_candidate_of_two_bits_is_rolled_back_by_itself_and_no_client_sees_it(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text("bad.gguf", samples=100))
    with live(deployment) as gateway, Client(gateway) as client:
        found = client.ask_until(gateway, state_is("promoted", "rolled_back"))
        assert found["state"] == "rolled_back", found
        assert "agreement is harmful" in found["since"]["why"]
        assert [client.ask()[2] for _ in range(8)] == ["old"] * 8
        assert ordered(gateway, "promote", "demo")[0] == 409  # it is not loaded
    assert set(client.statuses) == {200}
    # Limits are wide here, so that it may come into the canary before it is found out; it is never promoted.
    numbers = {test["name"]: test["numbers"] for test in found["tests"]}
    assert numbers["agreement"]["agreement"] < 0.97
    assert "promoted" not in {move["state"] for move in found["history"]}


def test_a_candidate_that_talks_garbage_in_the_canary_is_answered_for_by_the_control(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text("garbage.gguf", shadow=0.001))
    with live(deployment) as gateway, Client(gateway) as client:
        assert ordered(gateway, "promote", "demo")[1]["state"] == "promoted"
        for _ in range(10):
            client.ask(max_tokens=40)
        assert ordered(gateway, "abort", "demo", why="nonsense")[1]["state"] == "rolled_back"
        assert client.ask()[2] == "old"
        assert ordered(gateway, "start", "demo")[1]["state"] == "shadow"
        assert seen(gateway)["rollout"]["attempt"] == 2
    assert set(client.statuses) == {200}
    assert client.variants["old"] > 1


def test_cohorts_stay_and_grow_and_an_operator_chooses(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text(steps="[30, 70]", samples=100_000, shadow=0.001))
    people = [{"X-Tersor-Cohort": f"p{number}"} for number in range(40)]
    with live(deployment) as gateway, Client(gateway) as client:
        assert {client.ask(person)[2] for person in people[:5]} == {"old"}
        for action in ("pause", "resume"):
            assert ordered(gateway, action, "demo")[0] == 200
        assert client.ask({"X-Tersor-Variant": "new"})[2] == "new"
        status, told, _ = client.ask({"X-Tersor-Variant": "none"})
        assert (status, "no variant 'none'" in told["error"]["message"]) == (400, True)
        ordered(gateway, "promote", "demo")
        assert {client.ask(person)[2] for person in people} == {"new"}
        assert client.ask({"X-Tersor-Variant": "old"})[2] == "old"


def test_what_is_sent_again_is_answered_the_same_and_counts_once(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text(samples=100_000))
    with live(deployment) as gateway, Client(gateway) as client:
        name = {"Idempotency-Key": "one"}
        first = client.ask(name, prompt="def f(", temperature=1)
        assert client.ask(name, prompt="def f(", temperature=1) == first
        status, told, _ = client.ask(name, prompt="another")
        assert (status, "another request" in told["error"]["message"]) == (422, True)
        assert client.ask({"Idempotency-Key": "two"}, prompt="def f(", temperature=1)[1]["id"] != first[1]["id"]
        assert seen(gateway)["counts"]["requests"] == {"old": 2, "new": 0}


def test_a_stream_that_is_asked_for_again_is_the_same_and_one_that_was_left_is_not_kept(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text(samples=100_000))
    body = {"model": "demo", "prompt": "def f(", "temperature": 1, "stream": True}

    def streamed(name: str, tokens: int, most: int | None = None) -> bytes:
        connection = http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=60)
        headers = {**JSON, "Idempotency-Key": name}
        connection.request("POST", "/v1/completions", json.dumps({**body, "max_tokens": tokens}), headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-Tersor-Variant"] == "old"
        found = response.read(most)
        response.close()
        connection.close()
        return found

    with live(deployment) as gateway:
        first = streamed("one", 8)
        assert first.endswith(b"data: [DONE]\n\n")
        assert streamed("one", 8) == first
        assert streamed("two", 8) != first
        assert seen(gateway)["counts"]["requests"] == {"old": 2, "new": 0}
        for number in range(20):  # whoever leaves when all is sent already has not left
            name = f"left {number}"
            left = streamed(name, 400, 200)
            again = streamed(name, 400)
            if not again.startswith(left):
                break
        else:
            raise AssertionError("every answer that was left was kept")
        assert streamed(name, 400) == again


def test_a_hung_candidate_in_the_shadow_holds_nobody_up(place: Path) -> None:
    deployment = place / "deploy.yaml"
    deployment.write_text(text(samples=100_000))
    with live(deployment) as gateway, Client(gateway) as client:
        # where its command does not tell, it is the one that was loaded last
        os.kill((gateway.engines("demo/new") or gateway.children()[-1:])[0], signal.SIGSTOP)
        for _ in range(100):
            client.ask()
        shadow = seen(gateway)["rollout"]["shadow"]
        assert (set(client.statuses), set(client.variants)) == ({200}, {"old"})
        assert shadow["dropped"].get("full", 0) + shadow["failed"] + shadow["waiting"] > 0
