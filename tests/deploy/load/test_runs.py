"""Whole runs against servers in this process; times are bounded loosely, for the machine is shared."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.deploy.load.question import Question
from tersor.deploy.load.summary import StepResult
from tersor.pipeline.deploy.loadtest import loadtest

from .server import Request, answering, chunked, reply, serve


def value(step: StepResult, name: str) -> float:
    metric = step.metric(name)
    assert metric is not None, name
    return metric.value


def test_a_constant_service_time_is_found_at_each_rate() -> None:
    async def serving(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(reply())

    with serve(serving) as server:
        found = loadtest(server.url, rates=(20, 40), seconds=1, warmup=0.2, min_goodput=0.5)
    assert [step.rate for step in found.steps] == [20, 40]
    assert [step.statuses for step in found.steps] == [{"200": 20}, {"200": 40}]
    assert len(server.requests) == 20 + 40 + 4
    assert all(30 <= value(step, "latency_p50_ms") * 1.01 < 200 for step in found.steps)
    assert all(step.errors == {} for step in found.steps)
    assert found.settings["rates"] == "20,40"
    assert found.outcome in ("pass", "inconclusive")  # the latter where this machine was too busy to send in time


def test_a_stall_is_reported_that_a_closed_loop_would_not_see() -> None:
    stall_s = 1.0

    async def stalling(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 100:
            time.sleep(stall_s)  # nothing of the server moves, as in a collection of garbage
        writer.write(reply())

    with serve(stalling) as server:
        found = loadtest(server.url, rates=(100,), seconds=3, within_ms=100)
    (step,) = found.steps
    assert value(step, "latency_p90_ms") > 400  # a third of all requests fell into the stall
    assert value(step, "latency_p99_ms") > 700
    assert value(step, "goodput") < 0.8
    # A tester that waits for each answer sees what the server's own log has: one slow request among 300.
    assert len(server.took) == 300
    assert np.quantile(server.took, 0.99) < 0.1
    assert max(server.took) > 0.9


def test_twice_the_capacity_is_reported_as_such() -> None:
    worker = asyncio.Lock()

    async def serving(request: Request, writer: asyncio.StreamWriter) -> None:
        async with worker:
            await asyncio.sleep(0.02)  # 50 a second
        writer.write(reply())

    with serve(serving) as server:
        found = loadtest(server.url, rates=(100,), seconds=2, within_ms=100, max_p99_ms=150, min_goodput=0.9)
    (step,) = found.steps
    assert value(step, "offered_per_s") == 100
    assert value(step, "achieved_per_s") < 60
    assert value(step, "latency_p99_ms") > 700
    assert value(step, "goodput") < 0.4
    assert found.outcome in ("fail", "inconclusive")


def test_failures_are_counted_among_answers() -> None:
    async def breaking(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number % 3 == 1:
            writer.write(b"garbage\r\n\r\n")
        elif request.number % 3 == 2:
            writer.write(reply(b"", "500 Oops"))
        else:
            writer.write(reply())

    with serve(breaking) as server:
        (step,) = loadtest(server.url, rates=(60,), seconds=1).steps
    assert step.statuses == {"200": 20, "500": 20}
    assert step.errors == {"not HTTP": 20}


def test_too_few_connections_make_a_result_invalid() -> None:
    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(reply())

    with serve(slowly) as server:
        found = loadtest(server.url, rates=(40,), seconds=0.5, connections=1, max_p99_ms=1)
    assert "waited for one of 1 connections" in found.steps[0].invalid
    assert found.outcome == "inconclusive"


def test_streams_of_a_chat_are_timed_token_by_token() -> None:
    async def chatting(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith("GET /v1/models "):
            writer.write(reply(b'{"data": [{"id": "small"}]}'))
            return
        asked = json.loads(request.body)
        assert request.line.startswith("POST /v1/chat/completions ")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.05)
        for _ in range(asked["max_tokens"]):
            writer.write(chunked(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'))
            await writer.drain()
            await asyncio.sleep(0.02)
        usage = {"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}}
        writer.write(chunked(b"data: " + json.dumps(usage).encode() + b"\n\n", b"data: [DONE]\n\n") + b"0\r\n\r\n")

    with serve(chatting) as server:
        question = Question(openai=True, tokens=5, headers={"Authorization": "Bearer x"})
        (step,) = loadtest(server.url, question, rates=(10,), seconds=1).steps
    assert step.statuses == {"200": 10}
    assert 50 <= value(step, "first_token_p50_ms") * 1.01 < 500
    assert 20 <= value(step, "time_per_token_p50_ms") * 1.05 < 200
    assert value(step, "first_token_p50_ms") < value(step, "latency_p50_ms")
    assert 10 < value(step, "tokens_per_s") <= 51
    chats = [request for request in server.requests if request.line.startswith("POST")]
    assert {json.loads(request.body)["model"] for request in chats} == {"small"}
    assert len({request.body for request in chats}) == 10
    assert all("Authorization: Bearer x" in request.head for request in server.requests)


def test_a_stream_that_breaks_off_is_a_failure() -> None:
    async def chatting(request: Request, writer: asyncio.StreamWriter) -> None:
        event = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(event) + b"0\r\n\r\n")

    with serve(chatting) as server:
        (step,) = loadtest(server.url, Question(openai=True, model="m"), rates=(10,), seconds=0.5).steps
    assert step.errors == {"stream": 5}


def test_tensors_are_made_by_the_metadata_of_the_model() -> None:
    async def inferring(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith("GET /v2/models/net "):
            inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
            writer.write(reply(json.dumps({"name": "net", "inputs": inputs}).encode()))
            return
        (row,) = json.loads(request.body)["inputs"]
        writer.write(reply(json.dumps({"outputs": [row]}).encode()))

    with serve(inferring) as server:
        found = loadtest(server.url, Question(v2="net"), rates=(30,), seconds=0.5)
    assert found.work == "POST /v2/models/net/infer"
    assert found.steps[0].statuses == {"200": 15}
    assert found.steps[0].errors == {}
    assert json.loads(server.requests[1].body)["inputs"][0]["shape"] == [1, 4]


def test_a_server_that_does_not_tell_what_it_has_ends_the_run() -> None:
    with serve(answering(reply(b"", "404 Not Found"))) as server:
        with pytest.raises(EngineError, match="GET /v2/models/m: the server answers with status 404"):
            loadtest(server.url, Question(v2="m"))
        with pytest.raises(EngineError, match="GET /v1/models: the server answers"):
            loadtest(server.url, Question(openai=True))
    with serve(answering(reply(b"{}"))) as server, pytest.raises(EngineError, match="lists no models"):
        loadtest(server.url, Question(openai=True))
    with pytest.raises(EngineError, match="GET /v2/models/m: connect"):
        loadtest(server.url, Question(v2="m"))
