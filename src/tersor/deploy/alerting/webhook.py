"""Alerts as JSON to a URL: one POST, within bounds of time, no redirect followed, and the URL in no log."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tersor.core.errors import EngineError, SchemeError

__all__ = ["Webhook"]

TIMEOUT_S = 10.0
_PLAIN, _TLS = "http", "https"


class Webhook:
    """A URL that alerts go to; `shown` is as much of it as may be told: it often holds a secret.

    Raises SchemeError for what is no http or https URL.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise SchemeError("the webhook is no URL: http://host[:port]/path is wanted") from None
        is_odd = any(letter <= " " or letter > "~" for letter in url)
        if parts.scheme not in (_PLAIN, _TLS) or not parts.hostname or "@" in parts.netloc or is_odd:
            raise SchemeError("the webhook is no URL that can be posted to: http(s)://host[:port]/path, without a user")
        self._secure, self._host, self._port, self._timeout_s = parts.scheme == _TLS, parts.hostname, port, timeout_s
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.shown = f"webhook at {self._host}"

    def send(self, document: Mapping[str, Any]) -> None:
        """Post a document; EngineError where it was not taken, without the URL."""
        connection: http.client.HTTPConnection
        if self._secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "tersor"}
            connection.request("POST", self._path, json.dumps(document).encode(), headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.shown}: {type(error).__name__}") from None  # its text may hold the URL
        finally:
            connection.close()
        if not 200 <= status < 300:  # a redirect too: it would lead alerts to whom nobody named
            raise EngineError(f"{self.shown}: answered with status {status}")
