"""What a request of OpenAI's protocol asks of a model that runs in torch; what it cannot do is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tersor.deploy.running.causal.sampling import Sampling
from tersor.deploy.running.worker import RefusedError

__all__ = ["Asked", "asked"]

UNKNOWN = ("tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format")
MOST_STOPS, MOST_STOP_LETTERS, MOST_BIASES, MOST_TOP = 16, 256, 1024, 20
LARGEST_BIAS = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    prompt    a text, its tokens, or messages
    tokens    made at most; None: what the context has room for
    top       most likely tokens told with each one; None: no probabilities are told
    """

    prompt: Any
    is_chat: bool
    sampling: Sampling
    tokens: int | None
    choices: int
    stops: tuple[str, ...]
    top: int | None
    is_streamed: bool
    tells_usage: bool


def asked(operation: str, body: Mapping[str, Any], vocabulary: int) -> Asked:
    """Read a body that the gateway has let through; RefusedError names what this engine cannot do."""
    if operation not in ("completions", "chat/completions"):
        raise RefusedError(f"this model does not do {operation}")
    odd = [name for name in UNKNOWN if name in body and body[name] != {"type": "text"}]
    if odd:
        raise RefusedError(f"this model's engine does not know {', '.join(odd)}")
    is_chat = operation == "chat/completions"
    top = body.get("top_logprobs", 0) if is_chat else body.get("logprobs")
    options = body.get("stream_options")
    return Asked(
        prompt=_messages(body["messages"]) if is_chat else _prompt(body["prompt"], vocabulary),
        is_chat=is_chat,
        sampling=Sampling(
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            presence=body.get("presence_penalty", 0.0),
            frequency=body.get("frequency_penalty", 0.0),
            bias=_bias(body.get("logit_bias", {}), vocabulary),
            seed=body.get("seed"),
        ),
        tokens=body.get("max_tokens"),
        choices=body.get("n", 1),
        stops=_stops(body.get("stop", ())),
        top=min(int(top or 0), MOST_TOP) if body.get("logprobs") not in (None, False) else None,
        is_streamed=body.get("stream", False),
        tells_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _prompt(given: Any, vocabulary: int) -> Any:
    if isinstance(given, list) and not all(type(token) is int and 0 <= token < vocabulary for token in given):
        raise RefusedError(f"'prompt' has invalid tokens: whole numbers from 0 to {vocabulary - 1} are wanted")
    return given


def _messages(given: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"role": one["role"], "content": _content(one.get("content"))} for one in given]


def _content(given: Any) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    parts = given if isinstance(given, list) else [given]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RefusedError("the content of a message must be a text, or a list of texts: this model takes no others")
    return "".join(part["text"] for part in parts)


def _stops(given: Any) -> tuple[str, ...]:
    words = (given,) if isinstance(given, str) else given
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word for word in words):
        raise RefusedError("'stop' must be a text or a list of texts")
    if len(words) > MOST_STOPS or any(len(word) > MOST_STOP_LETTERS for word in words):
        raise RefusedError(f"'stop' may have {MOST_STOPS} texts of {MOST_STOP_LETTERS} letters")
    return tuple(words)


def _bias(given: Any, vocabulary: int) -> dict[int, float]:
    if not isinstance(given, dict) or len(given) > MOST_BIASES:
        raise RefusedError(f"'logit_bias' must map tokens to numbers, {MOST_BIASES} at most")
    made = {}
    for token, value in given.items():
        is_token = token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary
        if not is_token or type(value) not in (int, float) or not abs(value) <= LARGEST_BIAS:
            raise RefusedError(f"'logit_bias' must map tokens to numbers from -{LARGEST_BIAS} to {LARGEST_BIAS}")
        made[int(token)] = float(value)
    return made
