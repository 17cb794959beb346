"""Orders to a running gateway, as an operator gives them."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tersor.core.errors import EngineError, FormatError, SchemeError

__all__ = ["Gateway"]

TIMEOUT_S = 180.0
"""A reload loads engines."""
MOST_BYTES = 4 << 20
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
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise SchemeError(f"{self.url!r:.100}: the address of a gateway is http://HOST:PORT")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url}: no gateway answers ({error})") from error
        finally:
            connection.close()
        try:
            told = json.loads(content)
        except ValueError as error:
            raise FormatError(f"{self.url}: answers no JSON; is it a gateway of tersor?") from error
        if not isinstance(told, dict) or response.status >= http.client.BAD_REQUEST:
            reason = told.get("error", {}).get("message", "") if isinstance(told, dict) else ""
            raise EngineError(f"{self.url}: {method} {path}: status {response.status} {reason}".rstrip())
        return told
