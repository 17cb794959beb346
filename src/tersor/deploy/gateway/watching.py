"""What sentinels are told of an answer: tokens of a text with their probabilities, or tensors.

Engines are asked for the probabilities of a few tokens whether or not the client wants them: without, garbage under
status 200 looks like an answer.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tersor.core.errors import EngineError, SchemeError
from tersor.deploy.guard.findings import Finding
from tersor.deploy.guard.sentinels import FinishReason, ReplyWatch, Token
from tersor.deploy.guard.tensors import judge_tensors
from tersor.deploy.running.supervised import Answer

__all__ = ["TOP", "TensorWatch", "TextWatch", "Watch", "shown", "with_logprobs"]

TOP = 2
"""Most likely tokens that sentinels see: how far the first is from the second."""
WORD = re.compile(r"\s*\S+|\s+$")


class Watch(Protocol):
    """What is known of an answer so far."""

    tokens: int
    ended: FinishReason | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all sentinels."""
        ...

    def add(self, part: Mapping[str, Any], payload: bytes) -> None:
        """Take the next part of the answer."""
        ...


@dataclass
class TextWatch:
    """Of completions: a reply for each choice.

    is_bounded  the client said how long it may be, so that to end there tells nothing of the model
    """

    is_bounded: bool = False
    tokens: int = 0
    ended: FinishReason | None = None
    _replies: dict[int, ReplyWatch] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all choices."""
        return tuple(finding for reply in self._replies.values() for finding in reply.findings)

    def add(self, part: Mapping[str, Any], payload: bytes) -> None:
        """Take a chunk, or a whole answer."""
        del payload
        for choice in part.get("choices", ()):
            reply = self._replies.setdefault(int(choice.get("index", 0)), ReplyWatch())
            for one in (choice.get("logprobs") or {}).get("content") or _words(choice):
                reply.add(_token(one))
                self.tokens += 1
            reason = choice.get("finish_reason")
            if reason is not None:
                ended: FinishReason = "length" if reason == "length" else "stop"
                reply.close(ended)
                self.ended = "stop" if self.is_bounded else ended


@dataclass
class TensorWatch:
    """Of tensors: there is one part."""

    tokens: int = 0
    ended: FinishReason | None = None
    findings: tuple[Finding, ...] = ()

    def add(self, part: Mapping[str, Any], payload: bytes) -> None:
        """Take the outputs."""
        outputs, at = {}, 0
        for one in part["outputs"]:
            kind = np.dtype(one["dtype"])
            count = math.prod(one["shape"])
            outputs[one["name"]] = np.frombuffer(payload, kind, count, at).reshape(one["shape"])
            at += count * kind.itemsize
        self.tokens, self.ended, self.findings = 1, "stop", judge_tensors(outputs)


def shown(watch: Watch, part: Answer, name: str) -> None:
    """Show a watch the next part of an answer of the engine `name`; EngineError where that is no answer."""
    try:
        watch.add(*part)
    except SchemeError as error:
        raise EngineError(f"{name}: an answer that no reply is made of: {error}") from error


def with_logprobs(operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine is asked so that sentinels see probabilities."""
    if operation == "chat/completions":
        return {**body, "logprobs": True, "top_logprobs": max(TOP, body.get("top_logprobs") or 0)}
    if operation == "completions":
        return {**body, "logprobs": max(TOP, body.get("logprobs") or 0)}
    return dict(body)


def _words(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the words of a choice as tokens: loops are seen in them where an engine tells no more."""
    spoken = choice.get("delta") or choice.get("message") or {}
    for word in WORD.findall(choice.get("text") or spoken.get("content") or ""):
        yield {"id": zlib.crc32(word.encode(errors="surrogatepass")), "token": word}


def _token(one: Mapping[str, Any]) -> Token:
    piece = bytes(one["bytes"]) if one.get("bytes") is not None else str(one.get("token", ""))
    listed = one.get("top_logprobs") or ()
    top = tuple([(int(other["id"]), float(other["logprob"])) for other in listed if "id" in other])
    return Token(int(one.get("id", -1)), piece, one.get("logprob"), top)
