"""Watches one reply of a language model, token by token, without a twin to compare it with.

A sentinel says "this is no reply that a sound model gives"; it cannot say that a fluent reply is wrong. Every sentinel
speaks at most once a reply. What an engine does not send is not judged: without logprobs there is no entropy.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, NamedTuple, TypeAlias

from tersor.core.errors import SchemeError
from tersor.deploy.guard.findings import Finding, found
from tersor.deploy.guard.limits import Limits
from tersor.deploy.guard.rates import CountWindow
from tersor.deploy.guard.repetition import LoopDetector
from tersor.deploy.guard.utf8 import Utf8Check

__all__ = ["FinishReason", "LengthCaps", "ReplyWatch", "Token", "entropy_bounds"]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]

ABOVE_ZERO = 1e-3
"""Log-probabilities this far above 0 are rounding of float16, not a fault."""
LEFT = 1e-12
"""Probability of all other tokens below which there are none."""


class Token(NamedTuple):  # made for every token of every answer: a frozen dataclass takes three times as long
    """One token of a reply, and what the engine tells of the distribution that it was drawn from.

    piece    its text; bytes where a character may be split over tokens
    logprob  of the chosen token, nats
    top      (id, logprob) of the most probable tokens, in any order
    entropy  of the whole distribution, nats; where it is missing, `top` bounds it
    top1     id of the most probable token; where it is missing, that of `top`
    """

    id: int
    piece: bytes | str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    entropy: float | None = None
    top1: int | None = None


def entropy_bounds(logprobs: list[float], vocabulary: int | None) -> tuple[float, float]:
    """Return the least and the largest entropy, nats, of a distribution whose most probable tokens are `logprobs`.

    What they leave is spread evenly in the one case; in the other it is in pieces as large as the smallest of them.
    Without a vocabulary the largest is infinite.

    >>> low, high = entropy_bounds([math.log(0.5), math.log(0.25)], 4)
    >>> round(low, 3), round(high, 3)
    (1.04, 1.213)
    """
    probabilities = [math.exp(value) for value in logprobs]
    known = -sum(p * value for p, value in zip(probabilities, logprobs, strict=True) if p > 0)
    rest = max(0.0, 1.0 - sum(probabilities))
    if rest < LEFT:
        return known, known
    others = math.inf if vocabulary is None else vocabulary - len(logprobs)
    most = math.inf if math.isinf(others) else known + rest * math.log(max(others, 1) / rest)
    return known - rest * min(logprobs), most


class _Top:
    """What is looked for among the most probable tokens, in one pass over them.

    bad            how many log-probabilities are none
    id, first      the most probable token (of equal ones the first), and its log-probability
    second         the next largest; None where there are fewer than two
    """

    __slots__ = ("bad", "first", "id", "second")

    def __init__(self, top: tuple[tuple[int, float], ...]) -> None:
        self.bad, self.id, self.first, second = 0, top[0][0] if top else -1, -math.inf, -math.inf
        for token, value in top:
            if not value <= ABOVE_ZERO:
                self.bad += 1
            elif value > self.first:
                second, self.first, self.id = self.first, value, token
            elif value > second:
                second = value
        self.second = second if len(top) > 1 else None


class _Mean:
    """The mean of the last `size` numbers; None before there are so many."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._size = size

    @property
    def is_full(self) -> bool:
        return len(self._values) == self._size

    def add(self, value: float) -> float | None:
        self._values.append(value)
        # Summed anew: a running sum keeps what an infinite or a large number leaves behind.
        return math.fsum(self._values) / self._size if len(self._values) == self._size else None


class ReplyWatch:
    """The sentinels of one reply.

    vocabulary  rows of the output matrix; None: not known, then garbage is not told from text by entropy

    Feed tokens with `add`, end with `close`; both return what they found just now, `findings` holds all.
    """

    def __init__(self, limits: Limits | None = None, *, vocabulary: int | None = None) -> None:
        if vocabulary is not None and vocabulary < 2:
            raise SchemeError(f"a vocabulary has 2 tokens or more, got {vocabulary}")
        self._limits = limits = Limits() if limits is None else limits
        self._vocabulary = vocabulary
        self._least, self._most, self._margins = (_Mean(limits.window) for _ in range(3))
        self._loops = LoopDetector(longest=limits.loop_period, rounds=limits.loop_rounds, length=limits.loop_length)
        self._text = Utf8Check()
        self._top1, self._run = -1, 0
        self._is_closed = self._is_looping = False
        self.tokens = 0
        self.findings: tuple[Finding, ...] = ()

    def add(self, token: Token) -> tuple[Finding, ...]:
        """Take the next token; SchemeError where the reply is closed."""
        if self._is_closed:
            raise SchemeError(f"the reply was closed after {self.tokens} tokens; watch the next one with a new watch")
        before, place = len(self.findings), self.tokens
        self.tokens += 1
        self._check_text(place, self._text.add(token.piece))
        if not self._is_looping and (loop := self._loops.add(token.id)):
            self._is_looping = True
            self._report("repetition", place, loop.length, self._limits.loop_length)
        # Numbers that are none spoil whatever is computed from them.
        top = _Top(token.top)
        if not self._check_numbers(place, token, top):
            self._check_entropy(place, token)
            self._check_top1(place, token, top)
            self._check_margin(place, top)
        return self.findings[before:]

    def close(self, finish: FinishReason) -> tuple[Finding, ...]:
        """End the reply. A character that is cut off is a fault only where the model itself stopped there."""
        if self._is_closed:
            return ()
        before, self._is_closed = len(self.findings), True
        if finish == "stop":
            self._check_text(max(0, self.tokens - 1), self._text.end())
        return self.findings[before:]

    def _has(self, sentinel: str) -> bool:
        return any(finding.sentinel == sentinel for finding in self.findings)

    def _report(self, sentinel: str, place: int, value: float, limit: float) -> None:
        if not self._has(sentinel) and sentinel not in self._limits.ignored:
            self.findings += (found(sentinel, place, value, limit),)

    def _check_text(self, place: int, invalid: int) -> None:
        if invalid > self._limits.invalid_places:
            self._report("invalid_utf8", place, invalid, self._limits.invalid_places)

    def _check_numbers(self, place: int, token: Token, top: _Top) -> int:
        """Return how many numbers are none. A token that grammar forbids may have -inf, one that was chosen may not."""
        bad = top.bad
        if token.logprob is not None and not -math.inf < token.logprob <= ABOVE_ZERO:
            bad += 1
        if token.entropy is not None and not -ABOVE_ZERO <= token.entropy < math.inf:
            bad += 1
        if bad:
            self._report("bad_number", place, bad, 0)
        return bad

    def _check_entropy(self, place: int, token: Token) -> None:
        limits, least, most = self._limits, token.entropy, token.entropy
        if token.entropy is None:
            if not token.top:
                return
            logprobs = [value for _, value in token.top]
            if self._vocabulary is None and sum(map(math.exp, logprobs)) < 1 - LEFT:  # then it may be anything
                least, most = 0.0, math.inf
            else:
                least, most = entropy_bounds(logprobs, self._vocabulary)
        mean = self._most.add(most if most is not None else math.inf)
        if mean is not None and mean < limits.entropy_floor:
            self._report("entropy_collapse", place, mean, limits.entropy_floor)
        if self._vocabulary is None:
            return
        mean = self._least.add(least if least is not None else 0.0)
        if mean is not None:
            share = mean / math.log(self._vocabulary)
            if share > limits.entropy_ceiling:
                self._report("entropy_garbage", place, share, limits.entropy_ceiling)

    def _check_top1(self, place: int, token: Token, top: _Top) -> None:
        top1 = token.top1
        if top1 is None:
            if not token.top:
                return
            top1 = top.id
        self._run = self._run + 1 if top1 == self._top1 else 1
        self._top1 = top1
        if self._run >= self._limits.top1_run:
            self._report("constant_top1", place, self._run, self._limits.top1_run)

    def _check_margin(self, place: int, top: _Top) -> None:
        # Over the first window only: else the longer a reply, the surer a hint, and a stream would hear it too late.
        if top.second is None or self._margins.is_full:
            return
        mean = self._margins.add(math.exp(top.first) - math.exp(top.second))
        if mean is not None and mean < self._limits.margin:
            self._report("low_margin", place, mean, self._limits.margin)


class LengthCaps:
    """The sentinel of many replies of one variant: too many run into the length cap, where a sound model would stop."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = Limits() if limits is None else limits
        self._window = CountWindow(self._limits.cap_replies)

    def add(self, finish: FinishReason) -> Finding | None:
        """Take how a reply ended; one that was cancelled or failed says nothing."""
        if finish not in ("stop", "length"):
            return None
        self._window.add(finish == "length")
        rate = self._window.rate
        least = rate.at_least()
        if 4 * rate.total < self._limits.cap_replies or least <= self._limits.cap_share:
            return None
        if "length_cap" in self._limits.ignored:
            return None
        return found("length_cap", "replies", least, self._limits.cap_share)
