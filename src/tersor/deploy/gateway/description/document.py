"""The description of all routes, as OpenAPI 3.1 has it."""

from __future__ import annotations

import re
from typing import Any

from tersor import __version__
from tersor.deploy.gateway.description.routes import ROUTES, Guard, Route
from tersor.deploy.gateway.description.schemas import SCHEMAS

__all__ = ["description"]

JSON = "application/json"
OK, BAD_REQUEST, UNREADY = 200, 400, 503
OF_BODIES = (BAD_REQUEST, 408, 413)
FOR_BROWSERS: tuple[Guard, ...] = ("page", "form")
"""Not described: they are no protocol, and may change."""
OF_GUARDS: dict[Guard, tuple[int, ...]] = {"open": (), "key": (401, 429), "admin": (401, 403, 429)}
UNSUPPORTED = 415
"""Of an admin's orders."""
MEANINGS = {
    OK: "Well", BAD_REQUEST: "Wrong request", 401: "No valid key", 403: "This one may not", 404: "Not there",
    408: "The body came too slowly", 409: "It cannot be done; nothing was changed", 413: "Too large",
    UNSUPPORTED: "Not called JSON", 429: "Too often; Retry-After says when", UNREADY: "Not now; Retry-After says when",
    504: "No answer in time",
}  # fmt: skip
HEADER = "Inference-Header-Content-Length"


def description() -> dict[str, Any]:
    """Return the document, made from the table of routes; pages are left out."""
    paths: dict[str, Any] = {}
    for row in (row for row in ROUTES if row.guard not in FOR_BROWSERS):
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tersor",
            "version": __version__,
            "description": "OpenAI's protocol for language models, the Open Inference Protocol for nets, and what "
            "operators need.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(row: Route) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", row.path)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    if row.body == "InferRequest":
        parameters.append({"name": HEADER, "in": "header", "required": False, "schema": {"type": "string"}})
    made: dict[str, Any] = {
        "operationId": f"{row.operation}{'_of_version' if 'version' in names else ''}".replace("/", "_"),
        "summary": row.summary,
        "responses": {str(status): _response(row, status) for status in (OK, *_errors(row))},
    }
    if parameters:
        made["parameters"] = parameters
    if row.guard != "open":
        made["security"] = [{"key": []}, {}]  # the second: a gateway without keys
    if row.body:
        is_needed = bool(SCHEMAS[row.body].get("required"))
        content = {JSON: {"schema": _to(row.body)}}
        made["requestBody"] = {"required": is_needed, "content": content}
    return made


def _errors(row: Route) -> list[int]:
    of_body = OF_BODIES if row.body else ()
    of_orders = (UNSUPPORTED,) if row.guard == "admin" and row.method == "POST" else ()
    return sorted({*row.fails, *of_body, *OF_GUARDS[row.guard], *of_orders})


def _response(row: Route, status: int) -> dict[str, Any]:
    found: dict[str, Any] = {"description": MEANINGS[status]}
    if status != OK:
        # A probe says in its own words that it is not well.
        is_probe = status == UNREADY and row.method == "GET"
        error = row.answer if is_probe else "V2Error" if row.path.startswith("/v2") else "Error"
        found["content"] = {JSON: {"schema": _to(error)}}
    elif row.answer == "Text":
        found["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif row.answer:
        found["content"] = {JSON: {"schema": _to(row.answer)}}
        if row.answer == "Completion":
            found["content"]["text/event-stream"] = {}
        if row.answer == "InferResponse":
            found["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return found


def _to(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
