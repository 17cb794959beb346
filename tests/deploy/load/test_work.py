"""What is sent is what the interface asks for, and answers are read as it has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tersor.core.errors import EngineError, SchemeError
from tersor.deploy.load.exchange import Address, ExchangeError
from tersor.deploy.load.question import Question
from tersor.deploy.load.work import MOST_ELEMENTS, VARIANTS, Work, chat_work, fixed_work, tensors, tensors_work

ADDRESS = Address.parse("http://h:1/v1")
STREAM = chat_work(ADDRESS, "m", tokens=3)


def sent(work: Work, index: int = 0) -> tuple[str, Any]:
    head, _, body = work.wire(index).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return head.decode().split("\r\n")[0], json.loads(body)


def event(text: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}], **more}).encode() + b"\n\n"


def test_a_chat_is_a_completion_with_a_prompt_of_its_own() -> None:
    line, body = sent(STREAM, 7)
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 3, True)
    assert body["messages"][0]["content"].startswith("Night 7. ")
    assert STREAM.notes == ()
    fixed = chat_work(ADDRESS, "m", prompt="hi", is_streamed=False)
    assert sent(fixed, 1)[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert "the same prompt" in fixed.notes[0]


def test_a_stream_is_timed_at_its_first_and_last_text() -> None:
    times = iter(range(1, 20))
    reading = STREAM.reading(lambda: float(next(times)))
    reading.take(b": comment\n\n" + b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n')
    whole = event("a") + event("b")
    reading.take(whole[:9])
    reading.take(whole[9:30])
    reading.take(whole[30:])
    reading.take(b'data: {"choices": [], "usage": {"completion_tokens": 5}}\r\n\r\n')
    reading.take(b"data: [DONE]\n\n")
    reading.finish()
    assert (reading.first, reading.last, reading.tokens) == (4.0, 4.0, 5)


def test_without_a_count_of_the_server_each_event_is_a_token() -> None:
    reading = STREAM.reading(lambda: 0.0)
    reading.take(event("a") + event("b") + event("") + b"data: [DONE]\n\n")
    reading.finish()
    assert reading.tokens == 2


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (event("a"), "ended without"),
        (b"data: [DONE]\n\n", "held no text"),
        (b"data: {nonsense\n\n", "no JSON"),
        (b"data: [1]\n\n", "no object"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no JSON"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b'data: {"choices": 5, "usage": {"completion_tokens": -1}}\n\ndata: [DONE]\n\n', "held no text"),
        (b'data: {"choices": [4, {"delta": 3}]}\n\ndata: [DONE]\n\n', "held no text"),
        (b"data: " + b"x" * (5 << 20), "an event of more than"),
    ],
)
def test_a_broken_stream_has_a_reason(stream: bytes, message: str) -> None:
    reading = STREAM.reading(lambda: 0.0)

    def read() -> None:
        reading.take(stream)
        reading.finish()

    with pytest.raises(ExchangeError, match=message):
        read()


def test_a_whole_answer_is_parsed() -> None:
    work = chat_work(ADDRESS, "m", is_streamed=False)
    reading = work.reading(lambda: 0.0)
    reading.take(b'{"choices": [{}], "usage": {"completion_tokens": 9}}')
    reading.finish()
    assert (reading.tokens, reading.first) == (9, None)
    for wrong in (b"<html>", b"{}", b'{"choices": []}'):
        reading = work.reading(lambda: 0.0)
        reading.take(wrong)
        with pytest.raises(ExchangeError):
            reading.finish()


def test_tensors_follow_the_metadata() -> None:
    rows = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}, {"name": "i", "datatype": "INT64", "shape": [2]}]
    rows += [{"name": "b", "datatype": "BOOL", "shape": [1]}, {"name": "t", "datatype": "BYTES", "shape": [1]}]
    bodies = tensors({"inputs": rows}, seed=1)
    assert len(set(bodies)) == VARIANTS
    assert bodies == tensors({"inputs": rows}, seed=1)
    inputs = json.loads(bodies[0])["inputs"]
    assert [(row["name"], row["shape"], len(row["data"])) for row in inputs] == [
        ("x", [1, 3], 3),
        ("i", [2], 2),
        ("b", [1], 1),
        ("t", [1], 1),
    ]
    work = tensors_work(Address.parse("http://h/"), "m", bodies)
    assert sent(work, VARIANTS + 1) == ("POST /v2/models/m/infer HTTP/1.1", json.loads(bodies[1]))


def test_an_answer_with_tensors_has_outputs() -> None:
    work = tensors_work(Address.parse("http://h"), "m", [b"{}"])
    for body, is_right in ((b' {"outputs": []}', True), (b"{}", False), (b"oops outputs", False)):
        reading = work.reading(lambda: 0.0)
        reading.take(body)
        if is_right:
            reading.finish()
        else:
            with pytest.raises(ExchangeError, match="without outputs"):
                reading.finish()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "names no inputs"),
        ({"inputs": []}, "names no inputs"),
        ({"inputs": [{"name": "x"}]}, "describes no input"),
        ({"inputs": [5]}, "describes no input"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}]}, "describes no input"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [MOST_ELEMENTS, 2]}]}, "have more than"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1 << 40] * 9}]}, "have more than"),
        ({"inputs": [{"name": "x", "datatype": "BF16", "shape": [1]}]}, "no random numbers"),
    ],
)
def test_metadata_is_not_trusted(metadata: object, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        tensors(metadata)


def test_any_other_request_is_sent_as_it_is() -> None:
    work = fixed_work(ADDRESS, "/x", b"data", {"Content-Type": "text/plain"})
    assert work.wire(0) == work.wire(9)
    assert work.wire(0).endswith(b"Content-Type: text/plain\r\n\r\ndata")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"openai": True, "v2": "m"}, "goes with neither"),
        ({"v2": "m", "path": "/x"}, "does not go with path"),
        ({"v2": "../../x"}, "is not the name of a model"),
        ({"prompt": "x"}, "they go with openai"),
        ({"openai": True, "tokens": 0}, "an answer has from 1"),
    ],
)
def test_questions_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        Question(**given)
