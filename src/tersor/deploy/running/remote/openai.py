"""Servers of OpenAI's protocol: their answers checked, and put into the form that llama.cpp has for the gateway.

In that form logprobs are a record for each token, with its id. The protocol tells no ids; equal tokens get equal
numbers, which is all that sentinels need.
"""

from __future__ import annotations

import asyncio
import json
import math
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from tersor.core.errors import EngineError
from tersor.deploy.load.events import Events
from tersor.deploy.running.remote.link import Arriving, Link, WrongRemoteError, parsed
from tersor.deploy.running.supervised import Answer

__all__ = ["OpenAi", "checked"]

MOST_CHOICES = 64
MOST_EVENT = 4 << 20
SPOKEN = ("role", "content", "tool_calls", "reasoning_content", "refusal")
"""What is handed on of a message."""
USED = ("prompt_tokens", "completion_tokens", "total_tokens")


class OpenAi:
    """One model of such a server."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def facts(self, link: Link) -> dict[str, Any]:
        """Look for the model in the server's list."""
        found = await link.got(link.address.below("/models", "/v1"))
        rows = found.get("data") if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise WrongRemoteError(f"{link.name}: the server's list of models is none of OpenAI's protocol")
        names = [str(row.get("id"))[:80] for row in rows if isinstance(row, dict)]
        if self._model not in names:
            there = ", ".join(names[:8]) or "none"
            raise WrongRemoteError(f"{link.name}: the server has no model {self._model!r}; there are {there}")
        return {}

    async def answer(self, link: Link, request: dict[str, Any], payload: bytes) -> AsyncGenerator[Answer, None]:
        """Yield the chunks of a stream, or the one reply."""
        del payload
        operation, given = request["operation"], request["body"]
        body = json.dumps({**given, "model": self._model}).encode()
        async with link.asked(link.address.below(f"/{operation}", "/v1"), body) as arriving:
            if not given.get("stream"):
                found = parsed(link.name, await arriving.whole())
                yield checked(link.name, operation, found), b""
                return
            events, ended = _Events(arriving), set[int]()
            while (data := await events.next()) is not None:
                part = checked(link.name, operation, parsed(link.name, data))
                choices = part.get("choices", ())
                if any(_says(one) for one in choices if one["index"] in ended):
                    raise EngineError(f"{link.name}: a stream that goes on after its end")
                ended |= {one["index"] for one in choices if one["finish_reason"] is not None}
                yield part, b""


class _Events:
    """The data of the events of a stream."""

    def __init__(self, arriving: Arriving) -> None:
        self._arriving = arriving
        self._events = Events()
        self._said: deque[bytes] = deque()

    async def next(self) -> bytes | None:
        """Return the data of the next event, None for [DONE]; EngineError where it does not come in time, or never."""
        name, seconds = self._arriving.name, self._arriving.silence
        try:
            # Comments keep a connection alive, and are no answer.
            async with asyncio.timeout(seconds):
                while True:
                    data = await self._data()
                    if data:
                        return None if data == b"[DONE]" else data
        except TimeoutError:
            raise EngineError(f"{name}: nothing came for {seconds:g} s") from None

    async def _data(self) -> bytes:
        while not self._said:
            piece = await self._arriving.piece()
            if piece is None:
                raise EngineError(f"{self._arriving.name}: the stream broke off")
            self._said.extend(self._events.feed(piece))
            if self._events.unfinished > MOST_EVENT:
                raise EngineError(f"{self._arriving.name}: an event of more than {MOST_EVENT} bytes")
        return self._said.popleft()


def checked(name: str, operation: str, found: object) -> dict[str, Any]:
    """Return a reply or chunk with nothing but what the gateway knows; EngineError where its shape is another's."""
    try:
        return _embeddings(found) if operation == "embeddings" else _completion(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EngineError(f"{name}: an answer of another shape than OpenAI's ({str(error)[:80]})") from error


def _embeddings(found: Any) -> dict[str, Any]:
    rows = [{"object": "embedding", "index": _whole(row["index"]), "embedding": _vector(row)} for row in found["data"]]
    return {"data": rows, "usage": _usage(found)}


def _vector(row: Mapping[str, Any]) -> list[float] | str:
    value = row["embedding"]
    if isinstance(value, str):  # base64
        return value
    numbers = [float(number) for number in value]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("an embedding has NaN or infinity")
    return numbers


def _completion(found: Any) -> dict[str, Any]:
    if found.get("error"):
        raise ValueError("the server reports an error")
    choices = found["choices"]
    if not isinstance(choices, list) or len(choices) > MOST_CHOICES:
        raise ValueError("choices are a list")
    made: dict[str, Any] = {"choices": [_choice(one) for one in choices]}
    if len({one["index"] for one in made["choices"]}) < len(choices):
        raise ValueError("two choices of one index")
    if isinstance(found.get("object"), str):
        made["object"] = found["object"][:40]
    if found.get("usage") is not None:
        made["usage"] = _usage(found)
    return made


def _says(one: Mapping[str, Any]) -> bool:
    """Whether a choice, as `_choice` makes it, holds more of a reply than its end."""
    spoken = one.get("delta") or one.get("message") or {}
    said = (one.get("text"), one.get("logprobs", {}).get("content"), *(spoken.get(name) for name in SPOKEN[1:]))
    return any(said)


def _choice(one: Mapping[str, Any]) -> dict[str, Any]:
    reason = one.get("finish_reason")
    made: dict[str, Any] = {
        "index": _whole(one.get("index", 0)),
        "finish_reason": None if reason is None else _text(reason)[:40],
    }
    for key in ("message", "delta"):
        if key in one:
            spoken = {name: one[key][name] for name in SPOKEN if name in one[key]}
            for name in ("role", "content", "reasoning_content", "refusal"):
                if spoken.get(name) is not None:
                    _text(spoken[name])
            made[key] = spoken
    if "text" in one:
        made["text"] = _text(one["text"])
    if one.get("logprobs"):
        made["logprobs"] = {"content": _tokens(one["logprobs"])}
    return made


def _tokens(logprobs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records of tokens: those of chat, or made of the lists of completions."""
    if "content" in logprobs:
        return [
            {**_token(one), "top_logprobs": [_token(top) for top in one.get("top_logprobs") or ()]}
            for one in logprobs["content"] or ()
        ]
    words, values = logprobs["tokens"], logprobs["token_logprobs"]
    tops: Sequence[Any] = logprobs.get("top_logprobs") or [None] * len(words)
    return [
        {
            **_token({"token": word, "logprob": value}),
            "top_logprobs": sorted(
                (_token({"token": other, "logprob": one}) for other, one in (top or {}).items()),
                key=lambda token: -token["logprob"],
            ),
        }
        for word, value, top in zip(words, values, tops, strict=True)
    ]


def _token(one: Mapping[str, Any]) -> dict[str, Any]:
    word, value, raw = _text(one["token"]), one.get("logprob"), one.get("bytes")
    if raw is not None and not isinstance(raw, list):
        raise TypeError("bytes are a list")
    piece = word.encode(errors="surrogatepass") if raw is None else bytes(raw)
    return {
        "id": zlib.crc32(piece),
        "token": word,
        "logprob": None if value is None else float(value),
        "bytes": None if raw is None else list(piece),
    }


def _usage(found: Mapping[str, Any]) -> dict[str, int]:
    given = found.get("usage") or {}
    return {key: _whole(given[key]) for key in USED if given.get(key) is not None}


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError("a whole number is wanted")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is wanted")
    return value
