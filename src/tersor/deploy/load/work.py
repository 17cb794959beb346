"""What is asked of a server, and how its answer is read: plain bytes, chats of OpenAI's interface, V2 tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from tersor.core.errors import EngineError
from tersor.deploy.load.events import Events
from tersor.deploy.load.exchange import Address, ExchangeError, request_bytes

__all__ = ["Clock", "Reading", "Work", "chat_work", "fixed_work", "tensors", "tensors_work"]

Clock: TypeAlias = Callable[[], float]

JSON_HEADERS = {"Content-Type": "application/json"}
MOST_ELEMENTS = 1 << 20
"""Numbers in one request: the shapes come from the server, which is not trusted."""
MOST_ANSWER_BYTES = 4 << 20
"""Of an answer that is parsed, and of one event of a stream."""
VARIANTS = 16
"""Different bodies of random tensors that are sent in turn."""

PROMPT = (
    "You are the keeper of a small lighthouse. Describe one night of your work in plain words: the weather, the lamp, "
    "the ships that pass, what you hear and what you write into the log before the sun rises."
)


class Reading(Protocol):
    """Reads one answer. Times are on the clock it was made with; None where there was no such moment."""

    first: float | None
    last: float | None
    tokens: int

    def take(self, piece: bytes, /) -> None:
        """Read the next piece of the body of an answer with a 2xx status; ExchangeError if it cannot be right."""

    def finish(self) -> None:
        """Judge the whole body; ExchangeError where it is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of request.

    name     in words, for reports
    wire     number of a request, from 0 → its bytes
    reading  clock → what reads one answer
    notes    what a reader must know
    """

    name: str
    wire: Callable[[int], bytes]
    reading: Callable[[Clock], Reading]
    notes: tuple[str, ...] = ()


def fixed_work(
    address: Address,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] = {},
) -> Work:
    """Return the same request each time, a POST of `body` or else a GET; any body of the answer will do."""
    wire = request_bytes(address, path, body, headers)
    name = f"{'GET' if body is None else 'POST'} {path.partition('?')[0]}"  # a key may stand behind it
    return Work(name, lambda _: wire, lambda _: _Ignored())


def chat_work(
    address: Address,
    model: str,
    *,
    prompt: str | None = None,
    tokens: int = 64,
    is_streamed: bool = True,
    headers: Mapping[str, str] = {},
) -> Work:
    """Return chat completions of OpenAI's interface.

    prompt  the same for each request; None: a built-in one that begins with the number of the request, so that a
            server which keeps the beginnings of prompts cannot answer from memory
    tokens  that an answer may have at most
    """
    path = address.below("/chat/completions", "/v1")
    settings: dict[str, Any] = {"model": model, "max_tokens": tokens, "stream": is_streamed}
    if is_streamed:
        settings["stream_options"] = {"include_usage": True}
    fields = {**JSON_HEADERS, "Accept": "text/event-stream" if is_streamed else "application/json", **headers}

    def wire(index: int) -> bytes:
        text = f"Night {index}. {PROMPT}" if prompt is None else prompt
        body = json.dumps({**settings, "messages": [{"role": "user", "content": text}]}).encode()
        return request_bytes(address, path, body, fields)

    same = "each request has the same prompt: a server that keeps the beginnings of prompts answers it from memory"
    return Work(
        f"chat completions, {'streamed' if is_streamed else 'whole'}, at most {tokens} tokens",
        wire,
        _Stream if is_streamed else lambda _: _Completion(),
        () if prompt is None else (same,),
    )


def tensors_work(address: Address, model: str, bodies: Sequence[bytes], headers: Mapping[str, str] = {}) -> Work:
    """Return inference requests of the Open Inference Protocol with `bodies` in turn."""
    path = address.below(f"/models/{model}/infer", "/v2")
    wires = [request_bytes(address, path, body, {**JSON_HEADERS, **headers}) for body in bodies]
    return Work(f"POST {path}", lambda index: wires[index % len(wires)], lambda _: _Tensors())


def tensors(metadata: object, seed: int = 0) -> tuple[bytes, ...]:
    """Return VARIANTS bodies of random tensors as the metadata of a V2 model asks for them.

    Floats are normally distributed, whole numbers from 0 to 99, sizes that may vary (-1) are 1. Raises EngineError for
    metadata that is not of the protocol, of a type that JSON has no numbers for, or of more than MOST_ELEMENTS numbers.
    """
    rows = metadata.get("inputs") if isinstance(metadata, dict) else None
    if not isinstance(rows, list) or not rows:
        raise EngineError("the metadata of the model names no inputs: give a request in a file")
    random, left = np.random.default_rng(seed), MOST_ELEMENTS
    inputs = []
    for row in rows:
        try:
            name, kind, shape = str(row["name"]), str(row["datatype"]), [max(1, int(size)) for size in row["shape"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EngineError(f"{row!r:.100} describes no input: name, datatype and shape are needed") from error
        left -= math.prod(shape)
        if left < 0:
            raise EngineError(
                f"the inputs of the model have more than {MOST_ELEMENTS} numbers: give a request in a file"
            )
        inputs.append((name, kind, shape))
    return tuple(_tensor_body(inputs, random) for _ in range(VARIANTS))


def _tensor_body(inputs: Sequence[tuple[str, str, list[int]]], random: np.random.Generator) -> bytes:
    rows = [
        {"name": name, "datatype": kind, "shape": shape, "data": _numbers(kind, math.prod(shape), random)}
        for name, kind, shape in inputs
    ]
    return json.dumps({"inputs": rows}).encode()


def _numbers(kind: str, count: int, random: np.random.Generator) -> list[Any]:
    if kind in ("FP16", "FP32", "FP64"):
        return [round(value, 4) for value in random.standard_normal(count).tolist()]
    if kind.lstrip("U") in ("INT8", "INT16", "INT32", "INT64"):
        return list(random.integers(0, 100, count).tolist())
    if kind == "BOOL":
        return [bool(value) for value in random.integers(0, 2, count)]
    if kind == "BYTES":
        return [f"text {value}" for value in random.integers(0, 100, count)]
    raise EngineError(
        f"an input has datatype {kind[:40]!r}, for which there are no random numbers: give a request in a file"
    )


class _Ignored:
    """Any body will do."""

    __slots__ = ("first", "last", "tokens")

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.tokens = 0

    def take(self, piece: bytes, /) -> None:
        """Let it go."""

    def finish(self) -> None:
        """Nothing to find wrong."""


class _Whole(_Ignored):
    """Keeps the body, up to what is parsed of one."""

    __slots__ = ("body",)

    def __init__(self) -> None:
        super().__init__()
        self.body = bytearray()

    def take(self, piece: bytes, /) -> None:
        """Keep it."""
        self.body += piece
        if len(self.body) > MOST_ANSWER_BYTES:
            raise ExchangeError("too large", f"an answer of more than {MOST_ANSWER_BYTES} bytes")


class _Tensors(_Whole):
    """An answer with outputs. Told by its letters: to parse every number would slow the generator down."""

    __slots__ = ()

    def finish(self) -> None:
        """Look for outputs."""
        if not self.body.lstrip().startswith(b"{") or b'"outputs"' not in self.body:
            raise ExchangeError("wrong body", "an answer without outputs")


class _Completion(_Whole):
    """A chat completion in one piece; its tokens are those that the server counts."""

    __slots__ = ()

    def finish(self) -> None:
        """Parse it."""
        document = _parsed(self.body, "wrong body")
        if not isinstance(document.get("choices"), list) or not document["choices"]:
            raise ExchangeError("wrong body", "an answer without choices")
        self.tokens = _counted(document)


class _Stream(_Ignored):
    """Server-sent events of a chat completion: when the first and the last text came, and how many tokens."""

    __slots__ = ("_clock", "_counted", "_events", "_is_done", "_texts")

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock, self._events, self._texts, self._counted, self._is_done = clock, Events(), 0, 0, False

    def take(self, piece: bytes, /) -> None:
        """Read the events that `piece` completes; their time is now."""
        now = self._clock()
        for data in self._events.feed(piece):
            if data == b"[DONE]":
                self._is_done = True
            elif data:
                self._event(data, now)
        if self._events.unfinished > MOST_ANSWER_BYTES:
            raise ExchangeError("too large", f"an event of more than {MOST_ANSWER_BYTES} bytes")

    def finish(self) -> None:
        """A stream that ends without saying so was cut."""
        if not self._is_done:
            raise ExchangeError("stream", "the stream ended without [DONE]")
        if self.first is None:
            raise ExchangeError("stream", "the stream held no text")
        self.tokens = self._counted or self._texts

    def _event(self, data: bytes, now: float) -> None:
        document = _parsed(data, "stream")
        if document.get("error"):
            raise ExchangeError("stream", f"the server reports an error: {document['error']!r:.100}")
        self._counted = _counted(document) or self._counted
        choices = document.get("choices")
        if not isinstance(choices, list) or not any(map(_has_text, choices)):
            return
        self._texts += 1
        self.first = now if self.first is None else self.first
        self.last = now


def _has_text(choice: object) -> bool:
    delta = choice.get("delta") if isinstance(choice, dict) else None
    return isinstance(delta, dict) and any(
        delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")
    )


def _counted(document: Mapping[str, Any]) -> int:
    """Tokens of the answer by the server's count, 0 where it gives none."""
    usage = document.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 1 << 32 else 0


def _parsed(data: bytes | bytearray, kind: Any) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ExchangeError(kind, "an answer that is no JSON") from error
    if not isinstance(document, dict):
        raise ExchangeError(kind, "an answer that is no object")
    return document
