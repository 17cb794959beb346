"""What a client may ask: what engines would fail at is refused before any of them hears of it."""

from __future__ import annotations

from typing import Any

import pytest

from tersor.deploy.gateway.openai import checked
from tersor.deploy.running.supervised import RequestError

TALK = [{"role": "user", "content": "hi"}]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {"tools": 5}, "'tools'"),
    ("chat/completions", {"tools": [{"type": "function"}]}, "'tools'"),
    ("chat/completions", {"tool_choice": 5}, "'tool_choice'"),
    ("chat/completions", {"response_format": "json"}, "'response_format'"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must be texts"),
    ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
    ("completions", {"prompt": "a\udc00"}, "surrogate"),
    ("completions", {"stop": {"a": 1}}, "'stop'"),
    ("completions", {"stop": ["a"] * 17}, "'stop'"),
    ("completions", {"stop": [1]}, "'stop'"),
    ("completions", {"logit_bias": [1, 2]}, "'logit_bias'"),
    ("completions", {"logit_bias": {"5": 101}}, "'logit_bias'"),
    ("completions", {"stream_options": 5}, "'stream_options'"),
    ("completions", {"echo": True}, "'echo' is not supported"),
    ("completions", {"suffix": "end"}, "'suffix' is not supported"),
    ("completions", {"best_of": 3}, "'best_of' is not supported"),
]
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    ("completions", {"stop": ["a", "b"], "logit_bias": {"5": -100}, "stream_options": {"include_usage": True}}),
    ("completions", {"stop": "a", "echo": False, "best_of": 1, "suffix": None}),
    ("completions", {"n": 2}),
    ("completions", {"n": 2, "best_of": 2}),
    ("completions", {"prompt": "ein Käfer 🐞"}),
]


def asked(operation: str, more: dict[str, Any]) -> dict[str, Any]:
    needed = {"messages": TALK} if operation == "chat/completions" else {"prompt": "hi"}
    return checked(operation, {**needed, **more})


@pytest.mark.parametrize(("operation", "more", "word"), REFUSED)
def test_what_engines_would_fail_at_is_refused(operation: str, more: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word) as told:
        asked(operation, more)
    assert told.value.status == 400


@pytest.mark.parametrize(("operation", "more"), TAKEN)
def test_what_the_protocol_allows_is_taken(operation: str, more: dict[str, Any]) -> None:
    assert asked(operation, more)
