"""JSON schemas of what the gateway is sent and answers; limits come from the tables that requests are checked by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from tersor.deploy.gateway import openai
from tersor.deploy.gateway.operating.actions import ACTIONS
from tersor.deploy.running.datatypes import KINDS
from tersor.deploy.running.tensors import MOST_AXES

__all__ = ["SCHEMAS"]

Schema: TypeAlias = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {"type": "object"}
NAMED: Schema = {"type": ["string", "null"]}


def _of(needed: Mapping[str, Schema], **others: Schema) -> Schema:
    """An object with these keys; those of `needed` must be there."""
    return {"type": "object", "properties": {**needed, **others}, "required": list(needed)}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _to(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    kinds = schema.get("type")
    return {**schema, "type": [kinds, "null"]} if isinstance(kinds, str) else {"anyOf": [schema, {"type": "null"}]}


def _request(operation: str, needed: Schema) -> Schema:
    """What OpenAI's protocol sends, with the ranges that are taken."""
    found: dict[str, Schema] = {name: {} for name in sorted(openai.PARAMETERS[operation])}
    for name, (low, high) in openai.NUMBERS.items():
        if name in found:
            kind = "integer" if name in openai.WHOLE else "number"
            found[name] = {"type": [kind, "null"], "minimum": low, "maximum": high}
    if "logprobs" in found:
        count: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": openai.MOST_LOGPROBS}
        found["logprobs"] = count if operation == "completions" else _or_null(FLAG)
    found |= {"model": TEXT, "stream": _or_null(FLAG), openai.NEEDED[operation]: needed}
    made = _of({name: found.pop(name) for name in ("model", openai.NEEDED[operation])}, **found)
    return {**made, "additionalProperties": False}


_WORDS: Schema = {"anyOf": [TEXT, _list(WHOLE, minItems=1)]}
_TENSOR = _of(
    {"name": TEXT, "shape": _list({"type": "integer", "minimum": 0}, maxItems=MOST_AXES),
     "datatype": {"enum": sorted(KINDS)}},
    data=_list({}),
    parameters=ANY,
)  # fmt: skip
_RATE = {"type": ["number", "null"]}
_SERVED = _of({"requests": WHOLE, "errors": WHOLE})
_INTERVAL = _or_null(_of({"value": NUMBER, "low": NUMBER, "high": NUMBER}))
_LABELS = _of({"right": WHOLE, "labelled": WHOLE})
_ROLLOUT = _of(
    {
        "candidate": TEXT,
        "control": TEXT,
        "reference": TEXT,
        "id": TEXT,
        "attempt": WHOLE,
        "state": {"enum": ["created", "gated", "shadow", "canary", "promoted", "rolled_back", "paused"]},
        "paused_in": NAMED,
        "step": {"type": ["integer", "null"]},
        "steps": _list(NUMBER),
        "weight": NUMBER,
        "since": _of({"at": TEXT, "who": TEXT, "why": TEXT}),
        "progress": _or_null(
            _of({"samples": WHOLE, "needed_samples": WHOLE, "elapsed_s": NUMBER, "needed_s": NUMBER, "most_s": NUMBER})
        ),
        "tests": _list(
            _of(
                {"name": TEXT, "verdict": {"enum": ["harmful", "safe", "undecided"]}, "to_harm": NUMBER,
                 "to_safe": NUMBER, "samples": WHOLE, "required": FLAG, "numbers": ANY}
            )
        ),
        "next": _or_null(_of({"action": TEXT, "reason": TEXT})),
        "traffic": _of({"candidate": _SERVED, "control": _SERVED}),
        "shadow": _of(
            {"share": NUMBER, "compared": WHOLE, "agreement": _RATE, "failed": WHOLE, "dropped": ANY,
             "waiting": WHOLE, "in_flight": WHOLE, "distance": _RATE, "divergence": _RATE,
             "floor": _of({"compared": WHOLE, "agreement": _RATE, "distance": _RATE, "divergence": _RATE})}
        ),
        "feedback": _of(
            {"candidate": _LABELS, "control": _LABELS, "difference": _INTERVAL, "effect": _INTERVAL, "loss": NUMBER,
             "needed": {"type": ["integer", "null"]}, "is_enough": FLAG}
        ),
        "history": _list(_of({"at": TEXT, "state": TEXT, "weight": NUMBER, "who": TEXT, "why": TEXT})),
        "decisions": _list(_of({"at": TEXT, "action": TEXT, "reason": TEXT, "state": TEXT, "standings": ANY})),
    }
)  # fmt: skip
"""See `rolling.telling`."""
_MEMBER = _of(
    {
        "name": TEXT,
        "state": {"enum": ["serving", "rolled back", "unloaded"]},
        "primary": TEXT,
        "fallback": NAMED,
        "answering": NAMED,
        "since": _or_null(_of({"at": TEXT, "who": TEXT, "why": TEXT})),
        "variants": _list(_of({"name": TEXT, "role": TEXT, "engine": TEXT, "state": TEXT, "starts": WHOLE})),
        "guard": _or_null(_of({"breaker": ANY, "rates": ANY, "budget": ANY, "in_flight": WHOLE, "waiting": WHOLE})),
        "counts": ANY,
        "rollout": _or_null(_to("Candidate")),
    }
)

SCHEMAS: Mapping[str, Schema] = {
    # Errors, of each protocol
    "Error": _of({"error": _of({"message": TEXT, "type": TEXT}, param=NAMED, code=NAMED)}),
    "V2Error": _of({"error": TEXT}),
    # Health
    "Health": _of({"status": TEXT}, models=_list(TEXT)),
    "Live": _of({"live": FLAG}),
    "Ready": _of({"ready": FLAG}),
    "Description": _of({"openapi": TEXT, "info": ANY, "paths": ANY}),
    # OpenAI's protocol
    "ModelList": _of({"object": TEXT, "data": _list(_of({"id": TEXT, "object": TEXT}))}),
    "CompletionRequest": _request("completions", _WORDS),
    "ChatRequest": _request("chat/completions", _list(_of({"role": TEXT}), minItems=1)),
    "EmbeddingsRequest": _request("embeddings", {"anyOf": [TEXT, _list({"anyOf": [TEXT, WHOLE]}, minItems=1)]}),
    "Completion": _of({"id": TEXT, "object": TEXT, "model": TEXT, "choices": _list(_of({"index": WHOLE}))}, usage=ANY),
    "Embeddings": _of({"object": TEXT, "model": TEXT, "data": _list(ANY)}),
    # The Open Inference Protocol, with Triton's model repository
    "Server": _of({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)}),
    "Net": _of({"name": TEXT, "platform": TEXT, "inputs": _list(ANY), "outputs": _list(ANY)}, versions=_list(TEXT)),
    "NetReady": _of({"name": TEXT, "ready": FLAG}),
    "InferRequest": _of(
        {"inputs": _list(_TENSOR)}, id=TEXT, parameters=ANY, outputs=_list(_of({"name": TEXT}, parameters=ANY))
    ),
    "InferResponse": _of({"model_name": TEXT, "model_version": TEXT, "outputs": _list(_TENSOR)}, id=TEXT),
    "IndexRequest": _of({}, ready=FLAG),
    "Index": _list(_of({"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT})),
    "RepositoryRequest": _of({}, parameters={"type": "object", "maxProperties": 0}),
    "UnloadRequest": _of({}, parameters={**_of({}, unload_dependents=FLAG), "additionalProperties": False}),
    # Ours
    "Candidate": _ROLLOUT,
    "Member": _MEMBER,
    "Rollout": _of({"registry": FLAG, "models": _list(_to("Member")), "actions": ANY}),
    "Order": {
        **_of({"action": {"type": "string", "enum": list(ACTIONS)}}, model=_or_null(TEXT), why=_or_null(TEXT)),
        "additionalProperties": False,
    },
    "Feedback": {
        **_of({"id": {"type": "string", "minLength": 1, "maxLength": 128}, "right": FLAG}),
        "additionalProperties": False,
    },
    "Judged": _of({"model": TEXT, "variant": TEXT}),
    "Done": _of({"action": TEXT, "result": {"const": "done"}}),
}
"""Name → schema."""
