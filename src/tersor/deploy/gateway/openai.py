"""OpenAI's protocol: models, completions, chat, embeddings; streams of server-sent events.

Only parameters of that protocol reach an engine: each engine knows many more, grammars and files among them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from tersor.core.errors import EngineError
from tersor.deploy.gateway.models import Reply, Served
from tersor.deploy.running.supervised import RequestError

__all__ = ["OPERATIONS", "checked", "finished", "listed", "streamed"]

OPERATIONS = ("completions", "chat/completions", "embeddings")
_COMMON = {"model", "user", "metadata", "store"}
_SAMPLING = {
    *("max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "logprobs"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
}
PARAMETERS = {
    "completions": {*_COMMON, *_SAMPLING, "prompt", "echo", "best_of", "suffix"},
    "chat/completions": {
        *(*_COMMON, *_SAMPLING, "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools"),
        *("tool_choice", "parallel_tool_calls", "reasoning_effort"),
    },
    "embeddings": {*_COMMON, "input", "encoding_format", "dimensions"},
}
UNUSED = {*_COMMON, "echo", "best_of", "suffix", "dimensions"}
"""That no engine gets: those of the gateway, and those that none knows."""
NEEDED = {"completions": "prompt", "chat/completions": "messages", "embeddings": "input"}
MOST_CHOICES, MOST_LOGPROBS, MOST_STOPS, MOST_BIAS = 8, 20, 16, 100
NUMBERS = {
    "temperature": (0, 2), "top_p": (0, 1), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2),
    "n": (1, MOST_CHOICES), "max_tokens": (1, 1 << 20), "max_completion_tokens": (1, 1 << 20),
    "top_logprobs": (0, MOST_LOGPROBS), "seed": (-(1 << 63), (1 << 63) - 1),
}  # fmt: skip
WHOLE = ("n", "max_tokens", "max_completion_tokens", "top_logprobs", "seed")
SHOWN = ("choices", "created", "object", "usage", "data")
TEXTLESS = frozenset({int, float, bool, type(None)})
BAD_REQUEST = 400


def listed(models: Mapping[str, Served], created: int) -> dict[str, Any]:
    """Return what GET /v1/models says."""
    rows = [
        {"id": name, "object": "model", "created": created, "owned_by": "tersor"}
        for name, model in models.items()
        if not model.is_tensor
    ]
    return {"object": "list", "data": rows}


def checked(operation: str, body: object) -> dict[str, Any]:
    """Return the body that an engine gets; RequestError names what is wrong."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", BAD_REQUEST)
    odd = sorted(set(body) - PARAMETERS[operation])
    if odd:
        raise RequestError(f"unknown parameter {', '.join(map(repr, odd))[:200]}", BAD_REQUEST)
    given = {name: value for name, value in body.items() if value is not None}
    if NEEDED[operation] not in given:
        raise RequestError(f"{NEEDED[operation]!r} is missing", BAD_REQUEST)
    for name, (low, high) in NUMBERS.items():
        value = given.get(name, low)
        kinds = (int,) if name in WHOLE else (int, float)
        if type(value) not in kinds or not low <= value <= high:
            raise RequestError(f"{name!r} must be a number from {low} to {high}", BAD_REQUEST)
    logprobs = given.get("logprobs", False if operation == "chat/completions" else 0)
    if type(logprobs) is not (bool if operation == "chat/completions" else int) or not 0 <= logprobs <= MOST_LOGPROBS:
        kind = "true or false" if operation == "chat/completions" else f"a number from 0 to {MOST_LOGPROBS}"
        raise RequestError(f"'logprobs' must be {kind}", BAD_REQUEST)
    _check_shapes(given)
    _check_words(operation, given)
    if given.get("n", 1) > 1 and _is_empty(given):  # llama.cpp would never answer
        raise RequestError("'n' above 1 needs some text to go on from", BAD_REQUEST)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    return {name: value for name, value in given.items() if name not in UNUSED}


def _check_shapes(given: Mapping[str, Any]) -> None:
    """Refuse what engines take for something else, or fail at: their failure would count against the variant."""
    stop, bias, tools = given.get("stop", []), given.get("logit_bias", {}), given.get("tools", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(one, str) for one in stops):
        raise RequestError(f"'stop' must be a text, or up to {MOST_STOPS}", BAD_REQUEST)
    if not isinstance(bias, dict) or not all(
        isinstance(value, int | float) and abs(value) <= MOST_BIAS for value in bias.values()
    ):
        raise RequestError(f"'logit_bias' must have numbers from -{MOST_BIAS} to {MOST_BIAS} by token", BAD_REQUEST)
    if not isinstance(tools, list) or not all(
        isinstance(one, dict) and isinstance(one.get("function"), dict) for one in tools
    ):
        raise RequestError("'tools' must be a list of objects with a 'function'", BAD_REQUEST)
    if not isinstance(given.get("tool_choice", ""), str | dict):
        raise RequestError("'tool_choice' must be a word or an object", BAD_REQUEST)
    for name in ("stream_options", "response_format"):
        if not isinstance(given.get(name, {}), dict):
            raise RequestError(f"{name!r} must be an object", BAD_REQUEST)
    count = given.get("n", 1)
    odd = {"echo": given.get("echo"), "suffix": given.get("suffix"), "best_of": given.get("best_of", count) != count}
    for name, is_asked in odd.items():
        if is_asked:
            raise RequestError(f"{name!r} is not supported: leave it out", BAD_REQUEST)
    try:
        for text in _texts(given):
            text.encode()
    except UnicodeEncodeError as error:
        raise RequestError("a text holds half of a character (a lone surrogate)", BAD_REQUEST) from error


def _texts(given: object) -> Iterator[str]:
    """Yield every text in a body of JSON, however deep."""
    left = [given]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list):
            within = [*one, *one.values()] if isinstance(one, dict) else one
            left += [each for each in within if type(each) not in TEXTLESS]


def _check_words(operation: str, given: Mapping[str, Any]) -> None:
    """Refuse texts of another shape than the protocol's."""
    flags = ("stream", "logprobs") if operation == "chat/completions" else ("stream",)
    for name in flags:
        if type(given.get(name, False)) is not bool:
            raise RequestError(f"{name!r} must be true or false", BAD_REQUEST)
    if operation == "completions":  # there, it says how many
        count = given.get("logprobs", 0)
        if type(count) is not int or not 0 <= count <= MOST_LOGPROBS:
            raise RequestError(f"'logprobs' must be a number from 0 to {MOST_LOGPROBS}", BAD_REQUEST)
    if operation == "chat/completions":
        messages = given["messages"]
        if not isinstance(messages, list) or not messages:
            raise RequestError("'messages' must be a list of messages", BAD_REQUEST)
        if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages):
            raise RequestError("each message must have a role", BAD_REQUEST)
        parts = [part for one in messages if isinstance(one.get("content"), list) for part in one["content"]]
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            raise RequestError("parts of a message must be texts: models here see and hear nothing", BAD_REQUEST)
        return
    words = given[NEEDED[operation]]
    parts = words if isinstance(words, list) else [words]
    if not parts or not all(isinstance(part, (str, list)) or type(part) is int for part in parts):
        raise RequestError(f"{NEEDED[operation]!r} must be a text, texts or tokens", BAD_REQUEST)
    if operation == "completions" and isinstance(words, list) and not all(type(part) is int for part in words):
        raise RequestError("one 'prompt' at a time: a text, or its tokens", BAD_REQUEST)


def _is_empty(given: Mapping[str, Any]) -> bool:
    """Whether a model gets no text at all."""
    if "messages" in given:
        return not any(value for message in given["messages"] for key, value in message.items() if key != "role")
    return not given["prompt"]


async def finished(operation: str, model: Served, reply: Reply, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole answer as the protocol has it; `given` is what the client asked for."""
    made: dict[str, Any] = {}
    async for part, _ in reply.parts():
        made = part
    if not made:
        raise EngineError(f"{model.name}: the engine answered nothing")
    tokens = made.get("usage", {}).get("completion_tokens", 0)
    model.metrics.tokens.labels(model.name, reply.variant).inc(tokens)
    reply.tokens = tokens
    return _told(operation, model.name, made, number(operation), given)


async def streamed(
    operation: str, model: Served, reply: Reply, given: Mapping[str, Any], number: str
) -> AsyncIterator[bytes]:
    """Yield the events of an answer with the id `number`. One that breaks off ends with an error and without [DONE]."""
    count = 0
    try:
        async for part, _ in reply.parts():
            count += bool(part.get("choices"))
            yield b"data: " + json.dumps(_told(operation, model.name, part, number, given)).encode() + b"\n\n"
    except EngineError as error:
        reply.is_cut = True
        yield b"data: " + json.dumps({"error": {"message": str(error), "type": "server_error"}}).encode() + b"\n\n"
        return
    finally:
        reply.tokens = count
        model.metrics.tokens.labels(model.name, reply.variant).inc(count)
    yield b"data: [DONE]\n\n"


def number(operation: str) -> str:
    """Return a fresh id of a response."""
    return f"{'chatcmpl' if operation == 'chat/completions' else 'cmpl'}-{secrets.token_hex(12)}"


def _told(operation: str, name: str, made: Mapping[str, Any], number: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reply or chunk without what is the engine's own, or was asked for by us."""
    found = {key: made[key] for key in SHOWN if key in made}
    if operation == "embeddings":
        return {"object": "list", **found, "model": name}
    shape = _by_token if operation == "completions" else _by_record
    found["choices"] = [{**one, "logprobs": shape(one.get("logprobs"), given)} for one in found.get("choices", [])]
    return {"id": number, "created": int(time.time()), **found, "model": name}


def _by_record(logprobs: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return logprobs of chat, as many as the client wants."""
    if not logprobs or not given.get("logprobs"):
        return None
    count, keys = given.get("top_logprobs", 0), ("token", "logprob", "bytes")
    return {
        "content": [
            {
                **{key: one.get(key) for key in keys},
                "top_logprobs": [{key: top.get(key) for key in keys} for top in one.get("top_logprobs", ())[:count]],
            }
            for one in logprobs.get("content") or ()
        ]
    }


def _by_token(logprobs: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return logprobs of completions, which have lists where those of chat have a record a token."""
    if not logprobs or "content" not in logprobs or given.get("logprobs") is None:
        return None
    most = int(given["logprobs"])
    content, offsets, at = logprobs["content"], [], 0
    for one in content:
        offsets.append(at)
        at += len(one["token"])
    return {
        "tokens": [one["token"] for one in content],
        "token_logprobs": [one["logprob"] for one in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in one.get("top_logprobs", ())[:most]} for one in content
        ],
        "text_offset": offsets,
    }
