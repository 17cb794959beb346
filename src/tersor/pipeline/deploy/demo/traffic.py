"""Clients that ask a gateway one question after the other, each another beginning of held-out text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tersor import reference_model
from tersor.core.errors import EngineError
from tersor.core.records import from_json_text
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address, ExchangeError, Take, request_bytes
from tersor.deploy.load.recorder import DurationRecorder

__all__ = ["Traffic"]

TEXT = "held_out.txt"
SHORTEST, LONGEST = 40, 240
TOKENS = 12
TIMEOUT_S = 60.0
OK = 200


@dataclass(eq=False)
class Traffic:
    """Requests of one model, and what became of them.

    key      that each request names
    pause_s  that a client takes between two requests
    answered by the variant that gave the answer
    errors   by what was wrong: all that a client would see
    latency  of the answers
    """

    url: str
    model: str
    key: str
    seed: int
    pause_s: float = 0.0
    answered: Counter[str] = field(default_factory=Counter, init=False)
    errors: Counter[str] = field(default_factory=Counter, init=False)
    latency: DurationRecorder = field(default_factory=DurationRecorder, init=False)

    def __post_init__(self) -> None:
        self._address = Address.parse(self.url)
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        self._text = (reference_model.PATH / TEXT).read_text(encoding="utf-8")
        self._chance = random.Random(self.seed)  # noqa: S311 (prompts are no secrets)
        self._clients: Client | None = None

    @property
    def requests(self) -> int:
        """That have ended."""
        return self.answered.total() + self.errors.total()

    @contextlib.asynccontextmanager
    async def flowing(self, clients: int) -> AsyncIterator[None]:
        """Have so many clients ask until the end."""
        self._clients = Client(self._address, clients + 1)
        await self._clients.find()
        tasks = [asyncio.create_task(self._ask_on(self._clients), name=f"client {n}") for n in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._clients.close()

    async def seen(self) -> Mapping[str, Any]:
        """Return what the gateway tells an operator of the model; EngineError where it does not."""
        assert self._clients is not None, "there are clients while traffic flows"
        path = f"/v1/rollout/{self.model}"
        try:
            status, body = await self._clients.get(request_bytes(self._address, path, headers=self._headers), TIMEOUT_S)
        except ExchangeError as error:
            raise EngineError(f"GET {path}: {error.kind}: {error}") from error
        found = from_json_text(body.decode("utf-8", "replace"), f"GET {path}")
        if status != OK or not isinstance(found, dict):
            raise EngineError(f"GET {path}: the gateway answers with status {status}")
        return found

    def prompt(self) -> str:
        """The beginning of some text, from the start of a line."""
        start = self._text.rfind("\n", 0, self._chance.randrange(len(self._text) - LONGEST)) + 1
        return self._text[start : start + self._chance.randint(SHORTEST, LONGEST)]

    async def _ask_on(self, client: Client) -> None:
        while True:
            fault = await self._ask(client)
            if fault:
                self.errors[fault] += 1
                await asyncio.sleep(0.1)  # what is broken is not asked a thousand times a second
            await asyncio.sleep(self.pause_s)

    async def _ask(self, client: Client) -> str:
        """Send one request; return what was wrong with its answer."""
        body = {"model": self.model, "prompt": self.prompt(), "max_tokens": TOKENS, "temperature": 0}
        wire = request_bytes(self._address, "/v1/completions", json.dumps(body).encode(), self._headers)
        content, variants = bytearray(), []
        clock = asyncio.get_running_loop().time

        def head(status: int, fields: Mapping[bytes, bytes]) -> Take:
            del status
            variants.append(fields.get(b"x-tersor-variant", b"").decode("latin-1"))
            return content.extend

        began = clock()
        try:
            status = await client.send(wire, content.extend, began + TIMEOUT_S, lambda _: None, head)
        except ExchangeError as error:
            return error.kind
        if status != OK:
            return f"status {status}"
        try:
            text = json.loads(content)["choices"][0]["text"]
        except (ValueError, LookupError, TypeError):
            return "no answer of OpenAI's form"
        if not isinstance(text, str):
            return "no text"
        self.latency.add(clock() - began)
        self.answered[variants[-1]] += 1
        return ""
