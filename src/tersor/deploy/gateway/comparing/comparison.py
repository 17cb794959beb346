"""Whether the candidate says the same as full precision to one request that was answered.

Texts: both get the prompt with the answer's first tokens, as many as chance says, and say which token comes next:
agreement of teacher-forced top-1 at one place of the answer. One place, for the tokens of an answer depend on each
other, and the unit of the test is the request. Of a chat it is the place of the answer's first token, as its template
lets nobody go on in the middle. Tensors: the largest entry of each row, or the values where a row has but one.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import EngineError
from tersor.deploy.gateway.variants import Variant
from tersor.deploy.running.supervised import Answer, RequestError

__all__ = ["Compared", "Exchange", "NoReferenceError", "Rest", "compared", "floor"]

CLOSE = 0.05
"""Of a row with one value: how far, relative to the largest of that output, still counts as the same."""
MOST_TOKENS, MOST_BYTES = 512, 1 << 20
KEPT = ("prompt", "messages", "input")
LISTED = 5
"""Most likely tokens that divergence is told by."""


class NoReferenceError(Exception):
    """Full precision did not answer, so that nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One comparison.

    agreement   0 … 1; 0 where the candidate did not answer
    distance    of tensors: norm of the difference over that of the reference; None for texts
    divergence  of tokens: KL(reference ‖ candidate) in nats, over the reference's likeliest and all others together,
                a lower bound; None for tensors
    failed      why the candidate did not answer; empty: it did
    """

    agreement: float
    distance: float | None = None
    divergence: float | None = None
    failed: str = ""

    @property
    def apart(self) -> float | None:
        """Distance or divergence, whichever there is."""
        return self.distance if self.divergence is None else self.divergence


@dataclass
class Exchange:
    """A request and as much of its answer as a comparison needs."""

    request: dict[str, Any]
    payload: bytes
    tokens: list[tuple[int, str]] = field(default_factory=list)

    def add(self, part: Mapping[str, Any]) -> None:
        """Take the next part of the answer."""
        for choice in part.get("choices", ()):
            if not choice.get("index", 0):
                content = (choice.get("logprobs") or {}).get("content") or ()
                room = max(0, MOST_TOKENS - len(self.tokens))
                self.tokens += [(int(one.get("id", -1)), str(one.get("token", ""))) for one in content[:room]]

    @property
    def is_small(self) -> bool:
        """Whether it may be kept until it is compared."""
        return len(self.payload) <= MOST_BYTES

    def question(self, chance: random.Random) -> dict[str, Any]:
        """Return what both are asked."""
        operation, body = self.request.get("operation"), self.request.get("body", {})
        if operation is None:
            return self.request
        kept = {name: body[name] for name in KEPT if name in body}
        if operation == "embeddings":
            return {"operation": operation, "body": kept}
        greedy = {"max_tokens": 1, "temperature": 0, "seed": 1}
        if operation == "chat/completions":
            return {"operation": operation, "body": {**kept, **greedy, "logprobs": True, "top_logprobs": LISTED}}
        before = self.tokens[: chance.randint(0, len(self.tokens))]
        prompt = kept["prompt"]
        if isinstance(prompt, str):
            prompt += "".join(word for _, word in before)
        elif all(number >= 0 for number, _ in before):
            prompt = [*prompt, *(number for number, _ in before)]
        return {"operation": operation, "body": {"prompt": prompt, **greedy, "logprobs": LISTED}}


class Rest:
    """The rest of a reply, of which notes are taken; those of the parts that were `held` are taken at once."""

    def __init__(self, held: Sequence[Answer], parts: AsyncIterator[Answer], exchange: Exchange) -> None:
        self._parts, self._exchange, self.has_failed = parts, exchange, False
        for part, _ in held:
            exchange.add(part)

    async def parts(self) -> AsyncIterator[Answer]:
        """Yield it."""
        try:
            async for part in self._parts:
                self._exchange.add(part[0])
                yield part
        except EngineError:
            self.has_failed = True
            raise


async def compared(
    exchange: Exchange, reference: Variant, candidate: Variant, chance: random.Random, patience_s: float
) -> Compared:
    """Ask both, each for so many seconds; the candidate's failures are disagreement. Raises NoReferenceError."""
    question = exchange.question(chance)
    try:
        async with asyncio.timeout(patience_s):
            wanted = await _answer(reference, question, exchange.payload)
    except (EngineError, RequestError, TimeoutError) as error:
        raise NoReferenceError(str(error)) from error
    try:
        async with asyncio.timeout(patience_s):
            given = await _answer(candidate, question, exchange.payload)
        return _beside(wanted, given)
    except TimeoutError:
        return Compared(0.0, failed=f"no answer in {patience_s:g} s")
    except (EngineError, RequestError) as error:
        return Compared(0.0, failed=str(error) or type(error).__name__)
    except (KeyError, ValueError, TypeError, IndexError) as error:  # an answer of another form than the reference's
        return Compared(0.0, failed=f"another form of answer: {error!r:.100}")


async def floor(exchange: Exchange, reference: Variant, chance: random.Random, patience_s: float) -> Compared:
    """Ask full precision alone, and then twice at once, which engines may compute together: what differs is noise.

    Raises NoReferenceError.
    """
    question = exchange.question(chance)
    try:
        async with asyncio.timeout(patience_s):
            alone = await _answer(reference, question, exchange.payload)
            again = [_answer(reference, question, exchange.payload) for _ in range(2)]
            together, _ = await asyncio.gather(*again)
        return _beside(alone, together)
    except (EngineError, RequestError, TimeoutError) as error:
        raise NoReferenceError(str(error)) from error


def _beside(wanted: Answer, given: Answer) -> Compared:
    if "outputs" in wanted[0]:
        return _tensors(_arrays(wanted), _arrays(given))
    if "data" in wanted[0]:
        return _tensors(_vectors(wanted), _vectors(given))
    return _tokens(_likely(wanted), _likely(given))


async def _answer(variant: Variant, question: dict[str, Any], payload: bytes) -> Answer:
    async with aclosing(variant.run(question, payload)) as parts:
        found = None
        async for part in parts:
            found = part
    if found is None:
        raise EngineError(f"{variant.model}/{variant.name}: the engine answered nothing")
    return found


def _likely(answer: Answer) -> Sequence[Mapping[str, Any]]:
    """The likeliest tokens at the first place of a text; none where it ends there."""
    choices = answer[0]["choices"]
    content = (choices[0].get("logprobs") or {}).get("content") or ()
    if not content:
        return ()
    found: Sequence[Mapping[str, Any]] = content[0].get("top_logprobs") or [content[0]]
    return found


def _tokens(wanted: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]) -> Compared:
    def name(one: Mapping[str, Any]) -> object:
        return one.get("id", one.get("token"))

    if not wanted or not given:
        return Compared(float(bool(wanted) == bool(given)))
    full = {name(one): float(one["logprob"]) for one in wanted}
    other = {name(one): float(one["logprob"]) for one in given}
    same = max(full, key=lambda key: full[key]) == max(other, key=lambda key: other[key])
    return Compared(float(same), divergence=_divergence(full, other))


def _divergence(full: Mapping[object, float], other: Mapping[object, float]) -> float:
    """KL of two distributions of which the likeliest are known; all others are one event."""
    both = [key for key in full if key in other]
    p, q = [math.exp(full[key]) for key in both], [math.exp(other[key]) for key in both]
    p, q = [*p, max(1e-9, 1 - sum(p))], [*q, max(1e-9, 1 - sum(q))]
    total = sum(one * math.log(one / two) for one, two in zip(p, q, strict=True) if one > 0 and two > 0)
    return max(0.0, total)


def _arrays(answer: Answer) -> Iterator[npt.NDArray[Any]]:
    part, payload = answer
    at = 0
    for one in part["outputs"]:
        kind, count = np.dtype(one["dtype"]), math.prod(one["shape"])
        yield np.frombuffer(payload, kind, count, at).reshape(one["shape"])
        at += count * kind.itemsize


def _vectors(answer: Answer) -> Iterator[npt.NDArray[Any]]:
    for one in answer[0]["data"]:
        yield np.asarray(one["embedding"], np.float64).reshape(-1, 1)


def _tensors(wanted: Iterator[npt.NDArray[Any]], given: Iterator[npt.NDArray[Any]]) -> Compared:
    """Share of rows that agree, over all outputs, and the largest distance of one."""
    agree, rows, distance = 0.0, 0, 0.0
    for full, other in zip(wanted, given, strict=True):
        if full.shape != other.shape:
            raise ValueError(f"{other.shape} for {full.shape}")
        a, b = np.asarray(full, np.float64), np.asarray(other, np.float64)
        if not a.size:
            continue
        table, others = (one.reshape(-1, one.shape[-1] if one.ndim else 1) for one in (a, b))
        if table.shape[1] > 1:
            same = table.argmax(axis=1) == others.argmax(axis=1)
        else:
            same = np.abs(table - others)[:, 0] <= CLOSE * np.abs(table).max()
        agree, rows = agree + float(same.sum()), rows + len(table)
        norm, apart = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
        distance = max(distance, apart / norm if norm else float(apart > 0))
    is_finite = math.isfinite(distance)
    return Compared(agree / rows if rows and is_finite else float(is_finite), distance if is_finite else None)
