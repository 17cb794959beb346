"""Orders to a running gateway, as an operator gives them."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from tersor.core.errors import EngineError, FormatError, SchemeError
from tersor.deploy.load.client import Client, tls_context
from tersor.deploy.load.exchange import Address, ExchangeError, request_bytes

__all__ = ["Gateway"]

TIMEOUT_S = 180.0
"""A reload loads engines."""
BAD_REQUEST = 400
BEGINS_S = 10.0
PASSING = ("created", "gated")
"""States that a rollout goes through by itself, in a moment."""


@dataclass(frozen=True)
class Gateway:
    """A gateway at http://HOST:PORT or https, and the key of somebody who may change what serves; empty: none."""

    url: str
    key: str = field(default="", repr=False)

    def order(self, action: str, model: str | None, why: str) -> dict[str, Any]:
        """Have something done, and return what is told; EngineError with the gateway's own words where it is not."""
        body = {"action": action, "why": why, **({} if model is None else {"model": model})}
        return self._asked("POST", "/v1/rollout", body)

    def rollout_state(self, model: str) -> str:
        """Return the state of a model's rollout, waiting a little for one; empty: there is none."""
        deadline = time.monotonic() + BEGINS_S
        while True:
            found = self._asked("GET", f"/v1/rollout/{model}", None).get("rollout")
            state = str(found.get("state", "")) if isinstance(found, dict) else ""
            if state not in ("", *PASSING) or time.monotonic() > deadline:
                return state
            time.sleep(0.2)

    def _asked(self, method: str, path: str, body: object) -> dict[str, Any]:
        address = Address.parse(self.url)
        if address.path.strip("/") or address.query:
            raise SchemeError(f"{self.url!r:.100}: the address of a gateway is http://HOST:PORT")
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        wire = request_bytes(address, path, None if body is None else json.dumps(body).encode(), headers)
        try:
            status, content = asyncio.run(_exchanged(address, wire))
        except (EngineError, ExchangeError) as error:
            raise EngineError(f"{self.url}: no gateway answers ({error})") from error
        try:
            told = json.loads(content)
        except ValueError as error:
            raise FormatError(f"{self.url}: answers no JSON; is it a gateway of tersor?") from error
        if not isinstance(told, dict) or status >= BAD_REQUEST:
            reason = told.get("error", {}).get("message", "") if isinstance(told, dict) else ""
            raise EngineError(f"{self.url}: {method} {path}: status {status} {reason}".rstrip())
        return told


async def _exchanged(address: Address, wire: bytes) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body."""
    client = Client(address, 1, tls_context() if address.is_secure else None)
    try:
        await client.find()
        return await client.get(wire, TIMEOUT_S)
    finally:
        await client.close()
