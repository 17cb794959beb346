"""Other servers as engines: whatever they send is an answer, a refusal or an EngineError, and always in time."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing

import pytest

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.deploy.running.remote import link
from tersor.deploy.running.remote.openai import checked
from tersor.deploy.running.remote.remote import Remote
from tersor.deploy.running.supervised import Patience, RequestError

from ...load.server import Behave, Request, chunked, reply, serve
from .asking import (
    ASKED,
    CHUNK,
    MODELS,
    SAID,
    SSE,
    STREAMED,
    behaving,
    closing,
    dripping,
    hang,
    outcome,
    parts,
    played,
    remote,
    until,
)

WRONG: dict[str, tuple[Behave | bytes, str]] = {
    "no HTTP": (b"\x00garbage\r\n\r\n" * 10, "does not begin with HTTP/"),
    "no JSON": (reply(b"<html>"), "no JSON"),
    "too deep": (reply(b"[" * 200_000), "no JSON"),
    "no object": (reply(b"[1]"), "another shape"),
    "no choices": (reply(b"{}"), "another shape"),
    "choices that are none": (reply(b'{"choices": [1]}'), "another shape"),
    "an index that lies": (reply(b'{"choices": [{"index": 1e99, "text": "a"}]}'), "another shape"),
    "two choices of one index": (
        reply(b'{"choices": [{"index": 1, "text": "a"}, {"index": 1, "text": "b"}]}'),
        "two choices of one index",
    ),
    "text that is none": (reply(b'{"choices": [{"index": 0, "text": 7}]}'), "another shape"),
    "too many choices": (reply(b'{"choices": [' + b"{}," * 99 + b"{}]}"), "another shape"),
    "bytes that are a size": (
        reply(b'{"choices": [{"text": "a", "logprobs": {"content": [{"token": "a", "bytes": 99999999999}]}}]}'),
        "another shape",
    ),
    "lists that differ": (
        reply(b'{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": []}}]}'),
        "another shape",
    ),
    "a body that is too large": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "more than"),
    "a body without end": (dripping(SSE, chunked(b" " * 4_000_000)), "more than"),
    "a cut body": (closing(reply(SAID)[:-3]), "closed the connection"),
    "nothing": (closing(b""), "closed the connection"),
    "silence": (hang, "no answer in 0.5 s"),
    "a slow head": (dripping(b"", b"HTTP/1.1 200 OK\r\nX: "), "no answer in 0.5 s|not HTTP|no header|status of HTTP"),
    "a slow body": (dripping(SSE, chunked(b" ")), "no whole answer in 0.5 s"),
    "elsewhere": (reply(b"", "302 Found", "Location: http://127.0.0.1:1/"), "sends us elsewhere .status 302"),
    "a key that was taken back": (reply(b'{"error": "key"}', "401 Unauthorized"), "status 401: key"),
    "too often": (reply(b"", "429 Too Many Requests"), "status 429"),
    "broken": (reply(b'{"error": {"message": "on fire"}}', "500 Oh"), "status 500: on fire"),
}
ENDED = CHUNK.replace(b'"b"', b'"b", "finish_reason": "stop"')
STREAMS_WRONG: dict[str, tuple[Behave | bytes, str]] = {
    "broken off": (SSE + chunked(CHUNK) + b"0\r\n\r\n", "broke off"),
    "cut": (closing(SSE + chunked(CHUNK)), "closed the connection"),
    "no JSON": (SSE + chunked(CHUNK + b"data: {nothing\n\n"), "no JSON"),
    "another shape": (SSE + chunked(b"data: [1]\n\n"), "another shape"),
    "an error": (SSE + chunked(CHUNK + b'data: {"error": {"message": "on fire"}}\n\n'), "another shape"),
    "an event without end": (SSE + chunked(b"data: " + b"x" * 5_000_000), "event of more than"),
    "comments alone": (dripping(SSE, chunked(b": still here\n\n")), "nothing came for 0.5 s"),
    "silence behind the head": (dripping(SSE, b""), "nothing came for 0.5 s"),
    "text after its end": (SSE + chunked(ENDED, CHUNK), "goes on after its end"),
    "two ends": (SSE + chunked(ENDED, ENDED), "goes on after its end"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_reply_that_is_wrong_is_an_engine_error_in_time(case: str) -> None:
    data, words = WRONG[case]
    found = outcome(behaving(data), ASKED, answer_s=0.5 if "0.5 s" in words else 10)
    assert type(found) is not RequestError
    assert isinstance(found, EngineError), found
    with pytest.raises(EngineError, match=rf"^far: .*({words})"):
        raise found


@pytest.mark.parametrize("case", STREAMS_WRONG)
def test_a_stream_that_is_wrong_is_an_engine_error_in_time(case: str) -> None:
    data, words = STREAMS_WRONG[case]
    found = outcome(behaving(data), STREAMED, answer_s=0.5 if "0.5 s" in words else 10)
    with pytest.raises(EngineError, match=rf"^far: .*({words})"):
        raise found


def test_a_stream_may_tell_its_use_after_its_end_and_an_empty_part() -> None:
    empty, use = CHUNK.replace(b'"b"', b'""'), b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\n'
    data = SSE + chunked(ENDED, empty, use, b"data: [DONE]\n\n") + b"0\r\n\r\n"
    assert len(outcome(behaving(data), STREAMED)) == 3


def test_a_request_that_the_server_refuses_is_refused() -> None:
    found = outcome(behaving(reply(b'{"error": {"message": "too\\nlong"}}', "400 Bad")), ASKED)
    assert isinstance(found, RequestError)
    assert (str(found), found.status) == ("too long", 400)


def test_what_comes_behind_the_end_of_a_stream_is_not_read() -> None:
    data = SSE + chunked(CHUNK, b"data: [DO", b"NE]\n\ndata: {garbage\n\n") + b"0\r\n\r\n"
    found = outcome(behaving(data), STREAMED)
    assert [part["choices"][0]["text"] for part, _ in found] == ["b"]


def test_nothing_is_handed_on_that_the_gateway_does_not_know() -> None:
    token = {"token": "b", "logprob": -0.5, "bytes": None, "secret": 1}
    one = {
        "index": 0,
        "message": {"role": "assistant", "content": "b", "secret": 1},
        "logprobs": {"content": [{**token, "top_logprobs": [token]}]},
        "finish_reason": "stop",
        "secret": 1,
    }
    given = {"choices": [one], "usage": {"prompt_tokens": 1, "secret": 1}, "object": "chat.completion", "secret": 1}
    assert "secret" not in json.dumps(checked("far", "chat/completions", given))


def test_logprobs_in_lists_become_records() -> None:
    logprobs = {"tokens": ["b", "c"], "token_logprobs": [-1.0, None], "top_logprobs": [{"b": -1.0, "d": -0.5}, None]}
    made = checked("far", "completions", {"choices": [{"index": 0, "text": "bc", "logprobs": logprobs}]})
    first, second = made["choices"][0]["logprobs"]["content"]
    assert [top["token"] for top in first["top_logprobs"]] == ["d", "b"]
    assert first["id"] == first["top_logprobs"][1]["id"] != second["id"]
    assert (second["logprob"], second["top_logprobs"]) == (None, [])


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAR_KEY", "very secret")
    caplog.set_level(logging.DEBUG)

    async def scene() -> list[str]:
        with serve(behaving(reply(SAID))) as server:
            async with remote(server.url, key_env="FAR_KEY") as engine:
                await parts(engine, ASKED)
                assert "very secret" not in repr(engine)
            return [request.head for request in server.requests]

    heads = played(scene)
    assert len(heads) == 2
    assert all("\r\nAuthorization: Bearer very secret\r\n" in head for head in heads)
    assert "very secret" not in caplog.text


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [(None, MissingError, "no FAR_KEY"), (" ", MissingError, "no FAR_KEY"), ("a\r\nb", SchemeError, "is no key")],
)
def test_a_key_that_is_none_is_told(
    value: str | None, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("FAR_KEY", value)
    with pytest.raises(kind, match=words) as caught:
        played(remote("http://127.0.0.1:9", key_env="FAR_KEY").start)
    assert "a\r\nb" not in str(caught.value)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (reply(b'{"data": [{"id": "other"}]}'), "no model 'there'; there are other"),
        (reply(b"[]"), "none of OpenAI's protocol"),
        (reply(b'{"error": "no"}', "401 Unauthorized"), "status 401: no"),
        (reply(b"", "301 Moved", "Location: http://127.0.0.1:1/"), "elsewhere"),
    ],
)
def test_a_server_that_is_another_is_a_mistake_in_the_deployment(models: bytes, words: str) -> None:
    with serve(behaving(b"", models)) as server, pytest.raises(EngineError, match=rf"^far: .*{words}"):
        played(remote(server.url).start)


def test_a_server_that_is_away_is_looked_for_and_found() -> None:
    async def scene() -> None:
        is_there = False

        async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
            if is_there:
                await behaving(reply(SAID))(request, writer)
            else:
                writer.close()

        with serve(behave) as server:
            engine = remote(server.url)
            told: list[str] = []
            engine.on_state = lambda state, _: told.append(state)
            async with engine:
                assert engine.state == "waiting"
                with pytest.raises(EngineError, match="far: the engine is waiting: "):
                    await parts(engine, ASKED)
                is_there = True
                await until(lambda: engine.state == "ready")
                assert len(await parts(engine, ASKED)) == 1
                is_there = False
                await until(lambda: engine.state == "waiting")
                is_there = True
                await until(lambda: engine.state == "ready")
                assert engine.starts == 2
            assert told == ["waiting", "ready", "waiting", "ready", "closed"]

    played(scene)


def test_a_request_that_finds_nobody_tells_so_at_once_and_names_no_address() -> None:
    async def scene() -> None:
        with serve(behaving(reply(SAID))) as server:
            engine = Remote("far", "openai", remote(server.url).options, Patience(probe=60, backoff=60))
            await engine.start()
            assert len(await parts(engine, ASKED)) == 1
        try:
            with pytest.raises(EngineError) as caught:
                await parts(engine, ASKED)
            assert str(caught.value) == "far: no connection"
            assert engine.state == "waiting"
            with pytest.raises(EngineError, match="the engine is waiting: no connection"):
                await parts(engine, ASKED)
        finally:
            await engine.close()

    played(scene)


def test_a_kept_connection_that_is_closed_under_a_request_is_no_failure() -> None:
    async def once(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number and request.connection == 0:
            writer.close()  # without an answer: it had decided to close before the request came
        else:
            await behaving(reply(SAID))(request, writer)

    assert len(outcome(once, ASKED)) == 1


def test_a_request_is_not_sent_again_over_a_connection_of_its_own() -> None:
    async def scene() -> int:
        async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.line.startswith("GET"):
                writer.write(reply(MODELS, "200 OK", "Connection: close"))
                await writer.drain()
            writer.close()

        with serve(behave) as server:
            async with remote(server.url) as engine:
                with pytest.raises(EngineError):
                    await parts(engine, ASKED)
            return sum(request.line.startswith("POST") for request in server.requests)

    assert played(scene) == 1


def test_leaving_early_ends_the_exchange() -> None:
    async def scene() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(SSE)
            try:
                while True:
                    writer.write(chunked(CHUNK))
                    await writer.drain()
                    await asyncio.sleep(0.01)
            except OSError:
                loop.call_soon_threadsafe(ended.set)

        with serve(behaving(endless)) as server:
            async with remote(server.url) as engine:
                async with aclosing(engine.run(STREAMED)) as found:
                    await anext(found)
                assert engine.active == 0
                await ended.wait()

    played(scene)


def test_a_stream_that_nobody_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MOST_BYTES", 1 << 20)

    async def scene() -> None:
        big = b'data: {"choices": [{"index": 0, "text": "' + b"b" * 60_000 + b'"}]}\n\n'

        async def flood(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(SSE)
            while True:
                writer.write(chunked(big))
                await writer.drain()

        with serve(behaving(flood)) as server:
            async with remote(server.url, answer_s=10.0) as engine, aclosing(engine.run(STREAMED)) as found:
                await anext(found)
                await asyncio.sleep(0.5)
                with pytest.raises(EngineError, match="far: more than"):
                    async for _ in found:
                        pass

    played(scene)


def test_a_server_that_is_lost_is_looked_for_at_once() -> None:
    async def scene() -> None:
        async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply(MODELS, "200 OK", "Connection: close"))
            writer.close()

        server = await asyncio.start_server(answered, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        options = remote(f"http://127.0.0.1:{port}").options
        async with Remote("far", "openai", options, Patience(probe=60, backoff=0.02, longest=0.1)) as engine:
            server.close()
            await server.wait_closed()
            with pytest.raises(EngineError, match="no connection"):
                await parts(engine, ASKED)
            assert engine.state == "waiting"
            async with await asyncio.start_server(answered, "127.0.0.1", port):
                await until(lambda: engine.state == "ready")

    played(scene)


def test_an_engine_that_is_closed_tells_so() -> None:
    async def scene() -> None:
        with serve(behaving(reply(SAID))) as server:
            async with remote(server.url) as engine:
                pass
            with pytest.raises(EngineError, match="the engine is closed"):
                await parts(engine, ASKED)

    played(scene)
