"""What goes wrong behind the gateway and before it: engines die, clients misbehave, signals come."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import YAML, Live, live

BODY = {"model": "demo", "prompt": "def f(", "max_tokens": 4, "temperature": 0}


def asked(
    address: str, path: str, body: object = None, *, headers: dict[str, str] | None = None, data: bytes | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of one request."""
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        given = data if data is not None else None if body is None else json.dumps(body).encode()
        connection.request("GET" if given is None else "POST", path, given, headers or {})
        response = connection.getresponse()
        content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(content) if content[:1] in b"{[" else content.decode(), found
    finally:
        connection.close()


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/stat").exists() for pid in pids)


def engine_of(gateway: Live, file: str) -> int:
    """Process id of the engine that has loaded a file."""
    return next(pid for pid in gateway.children() if file in Path(f"/proc/{pid}/cmdline").read_text())


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def metric(address: str, start: str) -> float:
    lines = [line for line in asked(address, "/metrics")[1].splitlines() if line.startswith(start)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_full_precision_answers_while_the_engine_is_dead(gateway: Live) -> None:
    status, whole, headers = asked(gateway.address, "/v1/completions", BODY)
    assert (status, headers["x-tersor-variant"]) == (200, "quantized")
    for round_ in range(3):
        victim = engine_of(gateway, "small.gguf")
        os.kill(victim, signal.SIGKILL)
        seen = set()
        for _ in range(6):
            status, made, headers = asked(gateway.address, "/v1/completions", BODY)
            assert status == 200, made
            seen.add(headers["x-tersor-variant"])
        assert seen <= {"quantized", "full"}, round_
        until(lambda dead=victim: dead not in gateway.children())  # type: ignore[misc]  # bound now
        until(lambda: len(gateway.children()) == 4)
        until(lambda: metric(gateway.address, "tersor_engine_ready") == 4)
    # A breaker that has opened lets a few through some seconds later, and closes when these are well.
    until(lambda: asked(gateway.address, "/v1/completions", BODY)[2]["x-tersor-variant"] == "quantized", 40)
    _, made, _ = asked(gateway.address, "/v1/completions", BODY)
    assert made["choices"][0]["text"] == whole["choices"][0]["text"]
    assert metric(gateway.address, "tersor_engine_starts_total") >= 7


def test_a_hanging_engine_is_passed_by(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML.replace("deadline_s: 20", "deadline_s: 3"))) as gateway:
        os.kill(engine_of(gateway, "small.gguf"), signal.SIGSTOP)
        status, made, headers = asked(gateway.address, "/v1/completions", BODY)
        assert (status, headers["x-tersor-variant"], headers["x-tersor-fallback"]) == (200, "full", "timeout"), made
        assert metric(gateway.address, 'tersor_fallbacks_total{model="demo",reason="timeout"}') == 1


def test_without_a_fallback_the_failure_is_told(deployed: Callable[[str], Path]) -> None:
    alone = YAML.replace("    fallback: full\n", "")
    with live(deployed(alone)) as gateway:
        for victim in gateway.children():
            os.kill(victim, signal.SIGKILL)
        status, made, headers = asked(gateway.address, "/v1/completions", BODY)
        assert status == 503
        assert made["error"]["type"] == "overloaded_error"
        assert headers["retry-after"] == "1"
        assert asked(gateway.address, "/healthz")[0] == 200
        until(lambda: asked(gateway.address, "/readyz")[0] == 200)


def test_what_was_taken_is_answered_after_sigterm_and_nothing_is_left(deployed: Callable[[str], Path]) -> None:
    roomy = YAML.replace("in_flight: 4, queue: 4", "in_flight: 64, queue: 64")
    with live(deployed(roomy)) as gateway, contextlib.ExitStack() as stack:
        children = gateway.children()
        assert len(children) == 4
        host = gateway.address.removeprefix("http://")
        clients = [http.client.HTTPConnection(host, timeout=60) for _ in range(64)]
        for client in clients:
            stack.callback(client.close)
            client.request("GET", "/healthz")  # so that each connection was taken
            client.getresponse().read()
        for seed, client in enumerate(clients):
            # Greedily, the tiny model would soon repeat itself, which is a fault.
            body = {**BODY, "max_tokens": 120, "temperature": 1, "seed": seed}
            client.request("POST", "/v1/completions", json.dumps(body))
        assert metric(gateway.address, 'tersor_in_flight_requests{model="demo"}') > 0
        gateway.process.send_signal(signal.SIGTERM)
        for client in clients:
            response = client.getresponse()
            made = json.loads(response.read())
            assert response.status == 200, made
            assert made["choices"][0]["finish_reason"] in ("stop", "length")
        assert gateway.process.wait(timeout=30) == 0
        assert gone(children)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped process with its parent")
def test_a_gateway_that_is_killed_leaves_no_engine_not_even_one_that_hangs(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML)) as gateway:
        children = gateway.children()
        os.kill(children[0], signal.SIGSTOP)
        gateway.process.kill()
        gateway.process.wait(timeout=10)
        until(lambda: gone(children))


def test_more_than_fits_is_refused_at_once_with_a_time_to_come_back(gateway: Live) -> None:
    long = {**BODY, "max_tokens": 200, "temperature": 1, "seed": 1}
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: asked(gateway.address, "/v1/completions", long), range(24)))
    refused = [(made, headers) for status, made, headers in answers if status == 503]
    assert sum(status == 200 for status, _, _ in answers) >= 8
    assert refused
    for made, headers in refused:
        assert made["error"]["type"] == "overloaded_error"
        assert int(headers["retry-after"]) >= 1


def test_a_client_that_leaves_a_stream_frees_its_place(gateway: Live) -> None:
    host, _, port = gateway.address.removeprefix("http://").partition(":")
    body = json.dumps({**BODY, "max_tokens": 400, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(12):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(head + body)
            assert b"200 OK" in client.recv(2000)
    until(lambda: metric(gateway.address, 'tersor_in_flight_requests{model="demo"}') == 0)
    assert asked(gateway.address, "/v1/completions", BODY)[0] == 200


def test_keys_are_asked_for_and_limit_how_often(deployed: Callable[[str], Path]) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    keys = f"keys:\n  - {{name: alice, sha256: {digest}, per_minute: 20}}\n"
    with live(deployed(YAML + keys)) as gateway:
        assert asked(gateway.address, "/v1/models")[0] == 401
        assert asked(gateway.address, "/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
        assert asked(gateway.address, "/healthz")[0] == 200
        right = {"Authorization": "Bearer secret"}
        assert [asked(gateway.address, "/v1/models", headers=right)[0] for _ in range(3)] == [200, 200, 429]
        assert int(asked(gateway.address, "/v1/models", headers=right)[2]["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "words"),
    [
        ("/v1/completions", b"{", {}, 400, "no JSON"),
        ("/v1/completions", b"[" * 100_000, {}, 400, "no JSON"),
        ("/v1/completions", b"[]", {}, 400, "must be a JSON object"),
        ("/v1/completions", b'{"model": "demo"}', {}, 400, "'prompt' is missing"),
        ("/v1/completions", b'{"model": ["demo"], "prompt": "a"}', {}, 404, "no model"),
        ("/v1/completions", b'{"model": "demo", "prompt": {"a": 1}}', {}, 400, "'prompt' must be"),
        ("/v1/completions", b'{"model": "demo", "prompt": "a", "n": 1e9}', {}, 400, "'n' must be a number"),
        ("/v1/completions", b'{"model": "demo", "prompt": [99999999]}', {}, 400, "invalid tokens"),
        ("/v1/completions", b'{"model": "demo", "prompt": "a", "logprobs": "a"}', {}, 400, "from 0 to 20"),
        ("/v1/completions", b'{"model": "demo", "prompt": "a", "logprobs": 1000000000}', {}, 400, "from 0 to 20"),
        ("/v1/chat/completions", b'{"model": "demo", "messages": [{"role": "a"}], "logprobs": 3}', {}, 400, "true or"),
        ("/v1/chat/completions", b'{"model": "demo", "messages": [1]}', {}, 400, "must have a role"),
        (
            "/v1/chat/completions",
            b'{"model": "demo", "messages": [{"role": "user"}]}',
            {},
            400,
            "must contain 'content'",
        ),
        (
            "/v1/completions",
            b'{"model": "demo", "prompt": "a", "logprobs": [1]}',
            {},
            400,
            "'logprobs' must be a number",
        ),
        (
            "/v1/completions",
            b'{"model": "demo", "prompt": "a", "logprobs": 99999}',
            {},
            400,
            "'logprobs' must be a num",
        ),
        (
            "/v1/chat/completions",
            b'{"model": "demo", "messages": [{}], "logprobs": 9}',
            {},
            400,
            "must be true or false",
        ),
        ("/v1/completions", b'{"model": "demo", "prompt": "", "n": 2}', {}, 400, "needs some text to go on from"),
        (
            "/v1/chat/completions",
            b'{"model": "demo", "messages": [{"role": "assistant", "content": ""}], "n": 2}',
            {},
            400,
            "needs some text to go on from",
        ),
        ("/v1/embeddings", b'{"model": "demo", "input": "a"}', {}, 400, "does not support embeddings"),
        ("/v1/embeddings", b'{"model": "twice", "input": "a"}', {}, 404, "no model 'twice'"),
        ("/v1/completions", b"x", {"Content-Encoding": "br"}, 400, "gzip, deflate or none"),
        ("/v1/completions", b"x", {"Content-Encoding": "gzip"}, 400, "no gzip"),
        ("/v2/models/twice/infer", b"{}", {}, 400, "a list of 'inputs'"),
        ("/v2/models/twice/infer", b'{"inputs": [1]}', {}, 400, "must be an object"),
        ("/v2/models/twice/infer", b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "is no part of"),
        ("/v2/models/twice/infer", b"{}", {"Inference-Header-Content-Length": "9999"}, 400, "is no part of"),
        ("/v2/models/demo/infer", b"{}", {}, 404, "no model 'demo'"),
        ("/v2/models/twice/versions/9/infer", b"{}", {}, 404, "no version '9'"),
        ("/v1/complete", b"{}", {}, 404, "nothing is at /v1/complete; /openapi.json lists what there is"),
        ("/v2/models/twice/predict", b"{}", {}, 404, "nothing is at /v2/models/twice/predict"),
        ("/v1/models", b"{}", {}, 405, "/v1/models takes GET or HEAD, not POST"),
        ("/v2/models/twice/infer", None, {}, 405, "/v2/models/twice/infer takes POST, not GET"),
    ],
)
def test_a_wrong_request_is_told_why(  # noqa: PLR0917 (a table)
    path: str, data: bytes | None, headers: dict[str, str], status: int, words: str, gateway: Live
) -> None:
    found, made, _ = asked(gateway.address, path, data=data, headers=headers)
    assert found == status, made
    assert words in (made["error"] if path.startswith("/v2") else made["error"]["message"])


def test_bodies_are_bounded_in_size_and_time(deployed: Callable[[str], Path]) -> None:
    with live(deployed("body_bytes: 1000\nreceive_s: 0.5\n" + YAML)) as gateway:
        assert asked(gateway.address, "/v1/completions", data=b" " * 1001)[0] == 413
        host, _, port = gateway.address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in client.recv(2000)
        bomb = zlib.compress(bytes(10_000_000))
        assert (
            asked(gateway.address, "/v1/completions", data=bomb[:900], headers={"Content-Encoding": "deflate"})[0]
            == 413
        )
        assert asked(gateway.address, "/v1/completions", BODY)[0] == 200


def test_heads_are_bounded_in_time(deployed: Callable[[str], Path]) -> None:
    with live(deployed("receive_s: 0.5\n" + YAML)) as gateway:
        host, _, port = gateway.address.removeprefix("http://").partition(":")
        for start in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"):
            with socket.create_connection((host, int(port)), timeout=10) as client:
                client.sendall(start)
                assert client.recv(1000) == b""
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as kept:
            for _ in range(3):  # a connection that rests between requests is no slow one
                kept.request("GET", "/healthz")
                assert kept.getresponse().read() == b'{"status":"alive"}'
                time.sleep(0.7)


def test_heads_are_bounded_in_size(gateway: Live) -> None:
    host, _, port = gateway.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X: %s\r\n" % (b"a" * 1000) * 200)
        with contextlib.suppress(ConnectionError):
            assert client.recv(1000) == b""


def test_bytes_that_are_no_http_end_their_connection_alone(gateway: Live) -> None:
    host, _, port = gateway.address.removeprefix("http://").partition(":")
    for noise in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 5000, b"POST / HTTP/9.9\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(noise)
            client.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                client.recv(1000)
    assert asked(gateway.address, "/healthz")[0] == 200


def test_an_address_that_is_taken_is_told(gateway: Live, deployed: Callable[[str], Path]) -> None:
    port = gateway.address.rpartition(":")[2]
    with pytest.raises(AssertionError, match="cannot be listened on"), live(deployed(YAML), "--port", port):
        pass


def test_garbage_is_answered_by_full_precision_and_opens_the_breaker(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML.replace("small.gguf", "garbage.gguf"))) as gateway:
        told = [
            asked(gateway.address, "/v1/completions", {**BODY, "max_tokens": 40, "temperature": 1, "seed": seed})
            for seed in range(12)
        ]
        assert {status for status, _, _ in told} == {200}
        assert {headers["x-tersor-variant"] for _, _, headers in told} == {"full"}
        assert {headers["x-tersor-fallback"] for _, _, headers in told} == {"fault", "breaker open"}
        assert metric(gateway.address, "tersor_findings_total") >= 5
        assert asked(gateway.address, "/readyz")[0] == 200


def test_numbers_that_are_none_never_reach_a_client(deployed: Callable[[str], Path]) -> None:
    ones = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}
    broken = YAML.replace(
        "quantized: {engine: onnxruntime, path: twice.onnx}", "quantized: {engine: onnxruntime, path: nan.onnx}"
    )
    with live(deployed(broken)) as gateway:
        for _ in range(8):
            status, made, headers = asked(gateway.address, "/v2/models/twice/infer", ones)
            assert (status, headers["x-tersor-variant"]) == (200, "full")
            assert made["outputs"][0]["data"] == [2, 2, 2]


def test_a_loop_that_full_precision_has_too_is_no_fault_of_the_quantized_variant(gateway: Live) -> None:
    greedy = {**BODY, "prompt": "a a a a a a a a a a a a", "max_tokens": 120}
    told = [asked(gateway.address, "/v1/completions", greedy) for _ in range(8)]
    assert {status for status, _, _ in told} == {200}
    until(lambda: asked(gateway.address, "/v1/completions", BODY)[2]["x-tersor-variant"] == "quantized", 40)


def test_answers_that_are_as_long_as_clients_allow_are_no_fault(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML)) as gateway:
        bodies = [{**BODY, "temperature": 1, "seed": seed} for seed in range(80)]
        told = [asked(gateway.address, "/v1/completions", body)[2]["x-tersor-variant"] for body in bodies]
        assert told.count("quantized") >= 70  # low margins go to the fallback now and then
        assert metric(gateway.address, 'tersor_findings_total{model="demo",sentinel="length_cap"') == 0


def test_no_piece_of_a_response_waits_for_another(gateway: Live) -> None:
    """By kernel's leave: with Nagle's algorithm and delayed acknowledgements each answer takes 40 ms."""
    host, _, port = gateway.address.removeprefix("http://").partition(":")
    seconds = []
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as kept:
        for _ in range(30):
            began = time.perf_counter()
            kept.request("GET", "/healthz")
            kept.getresponse().read()
            seconds.append(time.perf_counter() - began)
    assert min(seconds[5:]) < 0.03
