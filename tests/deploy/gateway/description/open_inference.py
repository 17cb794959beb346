"""The Open Inference Protocol over HTTP as we read it, in OpenAPI: what any server of it has to answer.

Written from the protocol's prose, by hand and apart from the gateway's own description.
"""

from __future__ import annotations

from typing import Any

__all__ = ["protocol"]

TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
DATATYPES = ["BOOL", *(f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)), "FP16", "FP32", "FP64"]


def _of(**needed: Any) -> dict[str, Any]:
    return {"type": "object", "properties": needed, "required": list(needed)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


TENSOR = _of(name=TEXT, shape=_list({"type": "integer"}), datatype={"enum": [*DATATYPES, "BYTES"]})
DESCRIBED = _list(TENSOR)
FILLED = _of(**TENSOR["properties"], data={"type": "array"})


def protocol(models: list[str]) -> dict[str, Any]:
    """Return the description, for models with these names."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": models}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"enum": ["1"]}}
    body = _of(inputs=_list(FILLED))
    paths = {
        "/v2": {"get": _answers(_of(name=TEXT, version=TEXT, extensions=_list(TEXT)))},
        "/v2/health/live": {"get": _answers(_of(live=FLAG))},
        "/v2/health/ready": {"get": _answers(_of(ready=FLAG))},
    }
    for stem, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        metadata = _of(name=TEXT, platform=TEXT, inputs=DESCRIBED, outputs=DESCRIBED)
        response = _of(model_name=TEXT, outputs=_list(FILLED))
        asked = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
        paths[stem] = {"get": {**_answers(metadata), "parameters": parameters}}
        paths[f"{stem}/ready"] = {"get": {**_answers(_of(name=TEXT, ready=FLAG)), "parameters": parameters}}
        paths[f"{stem}/infer"] = {"post": {**_answers(response), **asked, "parameters": parameters}}
    return {"openapi": "3.1.0", "info": {"title": "Open Inference Protocol", "version": "2"}, "paths": paths}


def _answers(schema: dict[str, Any]) -> dict[str, Any]:
    def content(found: dict[str, Any]) -> dict[str, Any]:
        return {"application/json": {"schema": found}}

    return {
        "responses": {
            "200": {"description": "well", "content": content(schema)},
            "4XX": {"description": "wrong", "content": content(_of(error=TEXT))},
        }
    }
