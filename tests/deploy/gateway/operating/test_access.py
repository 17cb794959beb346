"""Who may say what serves: no page of a browser, nobody through a proxy, and with keys an admin alone."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import YAML, Live, live
from .orders import BODY, JSON, answered_by, asked, ordered, seen

triton = pytest.importorskip("tritonclient.http", reason="is a client: pip install 'tritonclient[http]'")
ORDER = {"action": "rollback", "model": "demo", "why": "test"}


def lines(keyable: Path, name: str = "deploy") -> list[dict[str, Any]]:
    """The audit log."""
    path = keyable / f"{name}.audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"Host": "evil.example"}, 403, "Host is localhost or a loopback address, not 'evil.example'"),
        ({"Host": "127.0.0.1.evil.example"}, 403, "Host is localhost"),
        ({"Host": "evil.example@127.0.0.1"}, 403, "Host is localhost"),
        ({"Host": "localhost:99999999"}, 403, "Host is localhost"),
        ({"Host": ""}, 403, "Host is localhost"),
        ({"Origin": "http://evil.example"}, 403, "a page of http://evil.example may not"),
        ({"Origin": "null"}, 403, "a page of null"),
        ({"Origin": "http://localhost:1"}, 403, "a page of http://localhost:1"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "a page of another host"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "a page of another host"),
        ({"X-Forwarded-For": "127.0.0.1"}, 403, "through a proxy"),
        ({"Forwarded": "for=127.0.0.1"}, 403, "through a proxy"),
        ({"Content-Type": "text/plain"}, 415, "application/json is wanted"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json is wanted"),
        ({"Content-Type": "text/plain; application/json"}, 415, "application/json is wanted"),
        ({"Content-Type": ""}, 415, "application/json is wanted"),
    ],
)
def test_what_a_browser_can_be_made_to_send_changes_nothing(
    headers: dict[str, str], status: int, words: str, local: Live
) -> None:
    found, told, _ = asked(local.address, "POST", "/v1/rollout", ORDER, {**JSON, **headers})
    assert (found, words in told["error"]["message"]) == (status, True), told
    path = "/v2/repository/models/twice/unload"
    found, told, _ = asked(local.address, "POST", path, {}, {**JSON, **headers})
    assert (found, words in told["error"]) == (status, True), told
    assert answered_by(local) == "quantized"
    assert seen(local, "twice")["state"] == "serving"


def test_an_order_without_any_content_type_is_none(local: Live) -> None:
    host, _, port = local.address.removeprefix("http://").partition(":")
    for path, more, status in (
        ("/v1/rollout", "", b" 415 "),
        ("/v2/repository/models/twice/unload", "Sec-Fetch-Site: none\r\n", b" 415 "),
    ):
        body = json.dumps(ORDER).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(head.encode() + body)
            assert status in client.recv(2000)
    assert answered_by(local) == "quantized"


@pytest.mark.parametrize("origin", [None, "same"])
@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_page_of_our_own_and_programs_of_this_machine_may(origin: str | None, kind: str, local: Live) -> None:
    headers = {
        "Content-Type": kind,
        **({} if origin is None else {"Origin": local.address, "Sec-Fetch-Site": "same-origin"}),
    }
    order = {"action": "reset-breaker", "model": "demo"}
    status, told, _ = asked(local.address, "POST", "/v1/rollout", order, headers)
    assert (status, told) == (200, {"action": "reset-breaker", "result": "done", "model": "demo", "breaker": "closed"})


@pytest.mark.parametrize(
    ("order", "status", "words"),
    [
        ([], 400, "an object with action, model, why is wanted"),
        ({}, 400, "an object with action"),
        ({"action": None}, 400, "an object with action"),
        ({"action": "rollback", "model": "demo", "wieght": 1}, 400, "an object with action"),
        ({"action": "rollback", "model": ["demo"]}, 400, "an object with action"),
        ({"action": "destroy", "model": "demo"}, 400, "no action 'destroy'; there are rollback, restore, reload"),
        ({"action": "rollback"}, 404, "no model None; there are demo, twice"),
        ({"action": "rollback", "model": "../demo"}, 404, "no model '../demo'"),
        ({"action": "reload", "model": "demo"}, 400, "reload is about all models"),
    ],
)
def test_an_order_that_makes_no_sense_is_told_why(order: object, status: int, words: str, local: Live) -> None:
    found, told, _ = asked(local.address, "POST", "/v1/rollout", order, JSON)
    assert (found, words in told["error"]["message"]) == (status, True), told


def test_a_rollback_and_its_end_outlive_a_kill_without_a_registry(keyable: Path) -> None:
    (keyable / "mine.yaml").write_text(YAML)
    with live(keyable / "mine.yaml") as gateway:
        assert ordered(gateway, "rollback", "demo", why="garbage\x1b[31m")[0] == 200
        assert answered_by(gateway) == "full"
        gateway.process.kill()
    with live(keyable / "mine.yaml") as gateway:
        found = seen(gateway)
        assert (found["state"], found["answering"], found["since"]["why"]) == ("rolled back", "full", "garbage?[31m")
        headers = asked(gateway.address, "POST", "/v1/completions", BODY, JSON)[2]
        assert (headers["x-tersor-variant"], headers["x-tersor-fallback"]) == ("full", "rolled back")
        assert ordered(gateway, "reload")[0] == 200
        assert answered_by(gateway) == "full"  # what is loaded anew is still rolled back
        assert ordered(gateway, "restore", "demo")[0] == 200
        assert answered_by(gateway) == "quantized"
        gateway.process.kill()
    with live(keyable / "mine.yaml") as gateway:
        assert answered_by(gateway) == "quantized"
    told = [(line["what"], line["subject"], line["result"]) for line in lines(keyable, "mine")]
    assert told[:2] == [("rollback", "demo", "begun"), ("rollback", "demo", "done")]
    assert told[2:4] == [("reload", "*", "begun"), ("reload", "*", "done")]


def test_everything_that_was_tried_is_written_down(keyable: Path) -> None:
    (keyable / "told.yaml").write_text(YAML)
    with live(keyable / "told.yaml", "--who", "carol") as gateway:
        assert ordered(gateway, "reset-breaker", "twice", why="calm")[0] == 200
        assert ordered(gateway, "load", "nothing")[0] == 404
        asked(gateway.address, "POST", "/v1/rollout", ORDER, {**JSON, "Origin": "http://evil.example"})
    rows = lines(keyable, "told")
    assert [(row["who"], row["what"], row["subject"], row["result"]) for row in rows] == [
        ("carol", "reset-breaker", "twice", "begun"),
        ("carol", "reset-breaker", "twice", "done"),
        ("carol", "load", "nothing", "refused"),
        ("carol", "POST /v1/rollout", "*", "refused"),
    ]
    assert rows[1]["reason"] == "calm"
    assert "http://evil.example" in rows[3]["reason"]
    assert all(row["origin"].startswith("127.0.0.1 port ") and row["at"].endswith("Z") for row in rows)


def test_who_may_not_ask_cannot_fill_the_disk(keyed: Live, keyable: Path) -> None:
    kept = http.client.HTTPConnection(keyed.address.removeprefix("http://"), timeout=10)
    for _ in range(200):
        kept.request("GET", "/v1/rollout")
        response = kept.getresponse()
        response.read()
        assert response.status == 401
    kept.close()
    assert len(lines(keyable, "keyed")) < 30


def test_with_keys_an_admin_alone_says_what_serves(keyed: Live, keyable: Path) -> None:
    def tried(key: str | None, method: str = "POST", path: str = "/v1/rollout", body: object = ORDER) -> int:
        headers = {**JSON, **({} if key is None else {"Authorization": f"Bearer {key}"})}
        return asked(keyed.address, method, path, body, headers)[0]

    unload = "/v2/repository/models/twice/unload"
    for key, status in ((None, 401), ("eve", 401), ("bob", 403)):
        assert tried(key) == status
        assert tried(key, "GET", body=None) == status
        assert tried(key, path=unload, body={}) == status
    assert tried("bob", "GET", "/v1/models", None) == 200
    headers = {**JSON, "Authorization": "Bearer ann", "Host": "served.example", "X-Forwarded-For": "9.9.9.9"}
    assert asked(keyed.address, "POST", "/v1/rollout", ORDER, headers)[0] == 200
    mine = [row for row in lines(keyable, "keyed") if row["what"] == "rollback"]
    assert [(row["who"], row["result"]) for row in mine] == [("ann", "begun"), ("ann", "done")]
    assert asked(keyed.address, "POST", "/v1/rollout", {**ORDER, "action": "restore"}, headers)[0] == 200


def test_keys_change_with_a_reload(keyed: Live, keyable: Path) -> None:
    headers = {**JSON, "Authorization": "Bearer ann"}
    text = (keyable / "keyed.yaml").read_text()
    (keyable / "keyed.yaml").write_text(
        text.replace(hashlib.sha256(b"bob").hexdigest(), hashlib.sha256(b"bib").hexdigest())
    )
    try:
        assert asked(keyed.address, "POST", "/v1/rollout", {"action": "reload"}, headers)[0] == 200
        for secret, status in (("bob", 401), ("bib", 200), ("ann", 200)):
            given = {"Authorization": f"Bearer {secret}"}
            assert asked(keyed.address, "GET", "/v1/models", None, given)[0] == status
    finally:
        (keyable / "keyed.yaml").write_text(text)
        asked(keyed.address, "POST", "/v1/rollout", {"action": "reload"}, headers)


def test_a_log_that_leads_elsewhere_is_not_followed(deployed: Callable[[str], Path], keyable: Path) -> None:
    path = keyable / "linked.yaml"
    path.write_text(YAML)
    target = keyable / "target"
    with live(path) as gateway:
        target.write_text("mine")
        (keyable / "linked.audit.jsonl").symlink_to(target)
        status, told = ordered(gateway, "rollback", "demo")
        assert status == 503
        assert "the audit log cannot be written" in told["error"]["message"]
        assert answered_by(gateway) == "quantized"
        assert target.read_text() == "mine"


def test_triton_loads_and_unloads(local: Live) -> None:
    client = triton.InferenceServerClient(local.address.removeprefix("http://"))

    def states() -> list[tuple[str, str, str]]:
        return [(row["name"], row["state"], row["reason"]) for row in client.get_model_repository_index()]

    assert states() == [("twice", "READY", "")]
    client.unload_model("twice")
    assert states() == [("twice", "UNAVAILABLE", "unloaded")]
    assert not client.is_model_ready("twice")
    assert client.is_server_ready()  # of what it is told to serve, all answers
    assert seen(local, "twice")["state"] == "unloaded"
    client.unload_model("twice")
    client.load_model("twice")
    assert client.is_model_ready("twice")
    client.load_model("twice")
    for call in (client.load_model, client.unload_model):
        for name in ("demo", "none", "..%2F..%2Fetc"):
            with pytest.raises(triton.InferenceServerException, match=r"no model .* in this repository"):
                call(name)
    with pytest.raises(triton.InferenceServerException, match=r"'config' is not taken"):
        client.load_model("twice", config="{}")
    with pytest.raises(triton.InferenceServerException, match=r"'file:1/model\.onnx' is not taken"):
        client.load_model("twice", files={"file:1/model.onnx": b"x"}, config=None)
    client.close()


def test_an_unloaded_model_answers_what_it_has(local: Live) -> None:
    stream = http.client.HTTPConnection(local.address.removeprefix("http://"), timeout=30)
    body = {**BODY, "stream": True, "max_tokens": 450, "temperature": 1, "seed": 5}
    stream.request("POST", "/v1/completions", json.dumps(body), JSON)
    response = stream.getresponse()
    response.read(1)
    assert ordered(local, "unload", "demo")[0] == 200
    assert asked(local.address, "POST", "/v1/completions", BODY, JSON)[0] == 404
    assert ordered(local, "rollback", "demo")[0] == 409
    assert response.read().endswith(b"data: [DONE]\n\n")
    stream.close()
    assert ordered(local, "load", "demo")[1]["was_loaded"] is False
    assert answered_by(local) == "quantized"
