"""What a user wants to be asked, and the requests that follow once the server has told what it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tersor.core.errors import EngineError, SchemeError
from tersor.core.records import from_json_text
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address, ExchangeError, request_bytes
from tersor.deploy.load.work import Work, chat_work, fixed_work, tensors, tensors_work

__all__ = ["Question", "work_of"]

MOST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Question:
    """One kind of request; without anything given a GET of the address as it is.

    openai     chat completions of OpenAI's interface
    model      for them; None: the first that the server lists
    prompt     for them; None: a built-in one, with a number that makes each different
    tokens     that an answer has at most
    is_streamed  whether text comes token by token
    v2         a model of the Open Inference Protocol; random tensors by its metadata, or those of `body`
    body       of a POST; None: a GET
    path       behind the address
    headers    for each request
    seed       of random tensors

    Raises SchemeError for what does not go together.
    """

    openai: bool = False
    model: str | None = None
    prompt: str | None = None
    tokens: int = 64
    is_streamed: bool = True
    v2: str | None = None
    body: bytes | None = None
    path: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.openai and (self.v2 is not None or self.body is not None or self.path is not None):
            raise SchemeError("openai makes its own requests: it goes with neither v2, body nor path")
        if not self.openai and (self.model is not None or self.prompt is not None):
            raise SchemeError("model and prompt are for chats: they go with openai")
        if self.v2 is not None and self.path is not None:
            raise SchemeError("v2 knows its own paths: it does not go with path")
        if self.v2 is not None and not re.fullmatch(r"[\w.-]+(/versions/[\w.-]+)?", self.v2, re.ASCII):
            raise SchemeError(f"{self.v2!r} is not the name of a model of the Open Inference Protocol")
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise SchemeError(f"an answer has from 1 to {MOST_TOKENS} tokens, got {self.tokens}")


async def work_of(question: Question, client: Client, address: Address, timeout_s: float) -> Work:
    """Return what to send; the server is asked for the name of a model, or its tensors, where they were not given.

    Raises EngineError where it does not tell within `timeout_s`, SchemeError for a path or header that is none.
    """
    if question.openai:
        model = question.model
        if model is None:
            model = _first_model(await _ask(client, address, address.below("/models", "/v1"), question, timeout_s))
        return chat_work(
            address,
            model,
            prompt=question.prompt,
            tokens=question.tokens,
            is_streamed=question.is_streamed,
            headers=question.headers,
        )
    if question.v2 is not None:
        bodies: tuple[bytes, ...] = () if question.body is None else (question.body,)
        if not bodies:
            path = address.below(f"/models/{question.v2}", "/v2")
            bodies = tensors(await _ask(client, address, path, question, timeout_s), question.seed)
        return tensors_work(address, question.v2, bodies, question.headers)
    path = address.whole if question.path is None else address.below(question.path)
    headers = dict(question.headers)
    if question.body is not None and "content-type" not in {name.lower() for name in headers}:
        headers["Content-Type"] = "application/json"
    return fixed_work(address, path, question.body, headers)


def _first_model(listed: object) -> str:
    rows = listed.get("data") if isinstance(listed, dict) else None
    first = rows[0] if isinstance(rows, list) and rows else None
    name = first.get("id") if isinstance(first, dict) else None
    if not isinstance(name, str):
        raise EngineError("the server lists no models: name one with model")
    return name


async def _ask(client: Client, address: Address, path: str, question: Question, timeout_s: float) -> object:
    """Return the JSON document that the server has at `path`."""
    try:
        status, body = await client.get(request_bytes(address, path, headers=question.headers), timeout_s)
    except ExchangeError as error:
        raise EngineError(f"GET {path}: {error.kind}: {error}") from error
    if status != 200:
        raise EngineError(f"GET {path}: the server answers with status {status}")
    return from_json_text(body.decode("utf-8", "replace"), f"GET {path}")
