"""Asking a gateway as an operator does."""

from __future__ import annotations

import http.client
import json
from typing import Any

from ..conftest import Live

BODY = {"model": "demo", "prompt": "def f(", "max_tokens": 4, "temperature": 0}
JSON = {"Content-Type": "application/json"}


def asked(
    address: str, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of one request."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers or {})
        response = connection.getresponse()
        content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(content) if content[:1] in (b"{", b"[") else content.decode(), found
    finally:
        connection.close()


def ordered(gateway: Live, action: str, model: str | None = None, **more: object) -> tuple[int, Any]:
    """Status and JSON of an order."""
    order = {"action": action, **({} if model is None else {"model": model}), **more}
    status, told, _ = asked(gateway.address, "POST", "/v1/rollout", order, JSON)
    return status, told


def seen(gateway: Live, model: str = "demo", headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What an operator sees of a model."""
    status, told, _ = asked(gateway.address, "GET", f"/v1/rollout/{model}", None, headers)
    assert status == 200, told
    found: dict[str, Any] = told
    return found


def answered_by(gateway: Live) -> str:
    """The variant that answers a request for a text."""
    status, told, headers = asked(gateway.address, "POST", "/v1/completions", BODY, JSON)
    assert status == 200, told
    return headers["x-tersor-variant"]
