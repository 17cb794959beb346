"""Alerts as JSON to a URL: one POST, within bounds of time, no redirect followed, and the URL in no log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.deploy.load.client import Client, tls_context
from tersor.deploy.load.exchange import Address, ExchangeError, request_bytes

__all__ = ["Webhook"]

TIMEOUT_S = 10.0
HEADERS = {"Content-Type": "application/json", "User-Agent": "tersor", "Connection": "close"}


class Webhook:
    """A URL that alerts go to; `shown` is as much of it as may be told: it often holds a secret.

    timeout_s  for looking up, connecting, sending and reading together, however slowly it answers
    Raises SchemeError for what is no http or https URL.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        try:
            self._address = Address.parse(url)
        except SchemeError:
            raise SchemeError(
                "the webhook is no URL that can be posted to: http(s)://host[:port]/path, without a user"
            ) from None  # its text would hold the URL
        self._timeout_s = timeout_s
        self.shown = f"webhook at {self._address.host}"

    def send(self, document: Mapping[str, Any]) -> None:
        """Post a document, and wait; EngineError where it was not taken, without the URL."""
        try:
            status = asyncio.run(self._posted(json.dumps(document).encode()))
        except ExchangeError as error:
            raise EngineError(f"{self.shown}: {error.kind}") from None
        except (EngineError, MissingError, SchemeError, TimeoutError):
            raise EngineError(f"{self.shown}: not found") from None
        if not 200 <= status < 300:  # a redirect too: it would lead alerts to whom nobody named
            raise EngineError(f"{self.shown}: answered with status {status}")

    async def _posted(self, body: bytes) -> int:
        client = Client(self._address, 1, tls_context() if self._address.is_secure else None)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await client.find()
            wire = request_bytes(self._address, self._address.whole, body, HEADERS)
            return await client.send(wire, lambda _: None, deadline, lambda _: None)
        finally:
            await client.close()
