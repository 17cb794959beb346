"""An engine that is another server: looked for, asked whether it is ready, passed by while it is away.

It has the interface of `supervised.Running`. A server that is away when the gateway starts may come later: that is
logged and no error. One that answers wrongly then (another model, a key that it does not take) is a mistake in the
deployment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.deploy.load.client import tls_context
from tersor.deploy.load.exchange import Address, request_bytes
from tersor.deploy.running.remote import openai, v2
from tersor.deploy.running.remote.link import AwayError, Link, WrongRemoteError
from tersor.deploy.running.supervised import Answer, Lived, Patience, RequestError, State

__all__ = ["REMOTES", "Remote", "Speaker"]

_logger = logging.getLogger(__name__)


class Speaker(Protocol):
    """A protocol that remote servers speak."""

    async def facts(self, link: Link) -> dict[str, Any]:
        """Return what the gateway has to know of the model; EngineError where it is not ready."""
        ...

    def answer(self, link: Link, request: dict[str, Any], payload: bytes) -> AsyncGenerator[Answer, None]:
        """Yield the parts of an answer in the form that engines of ours have for them."""
        ...


REMOTES: dict[str, Callable[[str], Speaker]] = {"openai": openai.OpenAi, "v2": v2.V2}
"""What an engine is called in a deployment → its protocol, of a model by the name that it has there."""


@dataclass(eq=False)
class Remote(Lived):
    """One remote engine; `start` it, and `close` it at the end.

    kind     a key of REMOTES
    options  "url", "model", "key_env" (the environment variable that holds the key), "connect_s", "answer_s"
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    patience: Patience = field(default_factory=Patience)
    on_state: Callable[[State, str], None] = lambda _state, _reason: None
    state: State = field(default="starting", init=False)
    facts: dict[str, Any] = field(default_factory=dict, init=False)
    starts: int = field(default=0, init=False)
    active: int = field(default=0, init=False)
    pid: int | None = field(default=None, init=False)
    _life: asyncio.Task[None] | None = field(default=None, init=False)
    _link: Link | None = field(default=None, init=False)
    _speaker: Speaker = field(init=False)
    _reason: str = field(default="not asked yet", init=False)
    _lost: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._speaker = REMOTES[self.kind](self.options["model"])

    async def start(self) -> None:
        """Ask the server once, and go on asking; EngineError where it is not what the deployment says.

        Raises MissingError where its key is not in the environment, SchemeError where that is no key.
        """
        self._link = self._linked()
        try:
            await self._ask()
        except WrongRemoteError:
            await self.close()
            raise
        except EngineError as error:
            self._away(error)
        self._life = asyncio.create_task(self._live(), name=f"remote {self.name}")

    async def close(self) -> None:
        """Ask no more."""
        await self.end_life()
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        self._to("closed", "closed")

    async def run(self, request: dict[str, Any], payload: bytes = b"") -> AsyncGenerator[Answer, None]:
        """Yield the parts of an answer; leaving early ends the exchange, which servers take for a cancellation.

        Raises RequestError where the server refuses the request, EngineError where it is away or answers wrongly.
        """
        link = self._link
        if self.state != "ready" or link is None:
            raise EngineError(f"{self.name}: the engine is {self.state}: {self._reason}")
        self.active += 1
        try:
            async with aclosing(self._speaker.answer(link, request, payload)) as parts:
                async for part in parts:
                    yield part
        except AwayError as error:
            self._away(error)
            raise
        finally:
            self.active -= 1

    def _linked(self) -> Link:
        address = Address.parse(self.options["url"])
        variable = self.options["key_env"]
        key = os.environ.get(variable, "").strip() if variable else ""
        if variable and not key:
            raise MissingError(f"{self.name}: the environment has no {variable}, which holds the key of its server")
        try:
            request_bytes(address, "/", headers={"Authorization": f"Bearer {key}"})
        except SchemeError as error:
            raise SchemeError(f"{self.name}: what {variable} holds is no key: {error}") from error
        context = tls_context() if address.is_secure else None
        return Link(self.name, address, key, context, self.options["connect_s"], self.options["answer_s"])

    async def _live(self) -> None:
        wait = self.patience.backoff
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.patience.probe if self.state == "ready" else wait):
                    await self._lost.wait()
            self._lost.clear()
            try:
                await self._ask()
            except EngineError as error:
                self._away(error)
                self._lost.clear()
                wait = min(wait * 2, self.patience.longest)
            else:
                wait = self.patience.backoff

    async def _ask(self) -> None:
        """Ask whether it is ready; EngineError where it is not."""
        link = self._link
        assert link is not None, "it was started"
        if self.state != "ready":
            await link.find()
        try:
            self.facts = await self._speaker.facts(link)
        except RequestError as error:
            raise EngineError(f"{self.name}: {error}") from error
        if self.state != "ready":
            self.starts += 1
            self._to("ready", "")

    def _away(self, error: EngineError) -> None:
        if self.state == "closed":
            return
        self._reason = str(error).removeprefix(f"{self.name}: ")
        if self.state != "waiting":
            _logger.warning("%s: %s (%s)", self.name, self._reason, error.__cause__ or "no more is known")
        self._to("waiting", self._reason)
        self._lost.set()

    def _to(self, state: State, reason: str) -> None:
        if state != self.state:
            self.state = state
            self.on_state(state, reason)
