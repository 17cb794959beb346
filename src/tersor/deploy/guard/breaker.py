"""A circuit breaker for one variant: closed, open, half-open; and when openings are so many that it should go.

A state machine without a clock or chance of its own: the caller hands in seconds, the jitter comes from a seed, so the
same calls give the same transitions. Every request asks for a permit and gives it back with its outcome. A permit knows
the period (from one transition to the next) it was given in; what it brings back counts for that period only, so that
a late result from before an opening neither closes nor opens anything.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError
from tersor.deploy.guard.rates import Rate, SteadyClock, TimeWindow

__all__ = ["Breaker", "BreakerRules", "Outcome", "Permit", "State", "Transition", "Verdict"]

State: TypeAlias = Literal["closed", "open", "half-open"]
Outcome: TypeAlias = Literal["ok", "fault", "error", "timeout", "cancelled"]
"""A fault is a finding of a sentinel, an error one of the engine; what the client cancelled says nothing."""
Verdict: TypeAlias = Literal["keep", "roll back"]

BAD: tuple[Outcome, ...] = ("fault", "error", "timeout")
LOG = 256
NO_PERIOD = -1
"""Of a permit that a breaker gave although it would not, for want of another variant."""


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker moves; SchemeError for rules that cannot work.

    window_s, least     outcomes of these seconds decide, at least so many of them
    fault_share         it opens where so large a share of them are faults
    error_share         … or errors and timeouts
    in_a_row            … or so many bad outcomes of any kind came in a row
    wait_s, longest_s   first wait before probes; doubled at each opening that follows, up to the longest
    jitter              the wait is multiplied by 1 ± up to this share, so that breakers do not probe in step
    probes              requests in flight while half-open
    successes           probes that must come back well before it closes; one bad probe opens it
    probe_s             a probe that is not back by then counts as a timeout
    calm_s              closed for so long, the next opening waits as the first
    openings, span_s    so many openings within so many seconds say "roll back"
    """

    window_s: float = 60.0
    least: int = 20
    fault_share: float = 0.1
    error_share: float = 0.5
    in_a_row: int = 5
    wait_s: float = 5.0
    longest_s: float = 300.0
    jitter: float = 0.2
    probes: int = 2
    successes: int = 5
    probe_s: float = 120.0
    calm_s: float = 600.0
    openings: int = 3
    span_s: float = 1800.0

    def __post_init__(self) -> None:
        if min(self.least, self.in_a_row, self.probes, self.successes, self.openings) < 1:
            raise SchemeError(f"counts must be 1 or more: {self}")
        if not (0 < self.fault_share <= 1 and 0 < self.error_share <= 1 and 0 <= self.jitter < 1):
            raise SchemeError(f"shares lie in 0 … 1, shares above 0, the jitter below 1: {self}")
        spans = [getattr(self, field.name) for field in fields(self) if field.name.endswith("_s")]
        if not all(0 < span < math.inf for span in spans) or self.longest_s < self.wait_s:
            raise SchemeError(f"spans must be positive, longest_s at least wait_s: {self}")


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one request to the variant; give it back once, with `Breaker.record`."""

    number: int
    period: int
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Transition:
    """A move, with the numbers that made it.

    at      seconds of the caller's clock
    faults, errors  in the window; errors hold timeouts; after half-open, of the probes
    wait_s  until probes are allowed; 0 where the new state is not open
    """

    at: float
    source: State
    target: State
    reason: str
    faults: Rate
    errors: Rate
    in_a_row: int
    wait_s: float
    verdict: Verdict


class Breaker:
    """The breaker of one variant.

    seed         of the jitter
    transitions  the last 256 moves, oldest first
    openings     how often it has opened in all
    verdict      "roll back" once openings were too many, until `reset`; the breaker itself goes on as before
    """

    def __init__(self, rules: BreakerRules | None = None, *, seed: int = 0) -> None:
        self.rules = BreakerRules() if rules is None else rules
        self.transitions: deque[Transition] = deque(maxlen=LOG)
        self.openings = 0
        self.verdict: Verdict = "keep"
        self._random = random.Random(seed)  # noqa: S311 (spreads probes, guards nothing)
        self._clock = SteadyClock()
        self._outcomes = TimeWindow(self.rules.window_s, kinds=2)
        self._state: State = "closed"
        self._since = self._until = 0.0
        self._period = self._number = self._in_a_row = self._successes = self._steps = 0
        self._probes: dict[int, tuple[int, float]] = {}
        self._opened: deque[float] = deque(maxlen=self.rules.openings)

    def state(self, now: float) -> State:
        """Return the state at `now` seconds; an open breaker whose wait is over is half-open."""
        self._advance(now)
        return self._state

    @property
    def probes_in_flight(self) -> int:
        """Probes that neither came back nor were given up."""
        return len(self._probes)

    def rates(self, now: float) -> tuple[Rate, Rate]:
        """Return faults and errors (with timeouts) over the window, of the present period."""
        faults, errors = self._outcomes.rates(now)
        return faults, errors

    def ask(self, now: float, *, has_other: bool = True) -> Permit | None:
        """Return leave to send one request, None where the full-precision variant has to take it.

        has_other  whether there is one that could; where there is none leave is always given, and what comes of a
                   request that would have gone there neither opens nor closes anything
        """
        elapsed = self._advance(now)
        is_probe = self._state == "half-open"
        is_barred = self._state == "open" or (is_probe and not self._may_probe())
        if is_barred and has_other:
            return None
        self._number += 1
        if is_barred:
            return Permit(self._number, NO_PERIOD, is_probe=False)
        if is_probe:
            self._probes[self._number] = (self._period, elapsed)
        return Permit(self._number, self._period, is_probe)

    def record(self, permit: Permit, outcome: Outcome, now: float) -> None:
        """Take what became of a permit. A probe's counts once, and not after it was given up."""
        self._advance(now)
        if permit.is_probe and self._probes.pop(permit.number, None) is None:
            return
        if permit.period != self._period or outcome == "cancelled":
            return
        self._outcomes.add(now, outcome == "fault", outcome in ("error", "timeout"))
        self._in_a_row = self._in_a_row + 1 if outcome in BAD else 0
        if self._state == "closed":
            reason = self._too_bad(now)
            if reason:
                self._open(now, reason)
        elif outcome in BAD:
            self._open(now, f"a probe ended in {outcome}")
        else:
            self._successes += 1
            if self._successes >= self.rules.successes:
                self._move("closed", now, f"{self._successes} probes came back well")

    def reset(self, now: float) -> None:
        """Close it and forget the verdict: another artefact serves, or an operator says so. Permits given out lapse."""
        self._advance(now)
        self.verdict, self._steps = "keep", 0
        self._opened.clear()
        self._probes.clear()
        self._move("closed", now, "reset")

    def _may_probe(self) -> bool:
        """No more probes than are allowed at once, old ones counted, and no more than can still be needed."""
        ours = sum(period == self._period for period, _ in self._probes.values())
        return len(self._probes) < self.rules.probes and self._successes + ours < self.rules.successes

    def _too_bad(self, now: float) -> str:
        """Return why a closed breaker has to open, "" where it has not."""
        rules, (faults, errors) = self.rules, self.rates(now)
        if self._in_a_row >= rules.in_a_row:
            return f"{self._in_a_row} bad outcomes in a row"
        if faults.total < rules.least:
            return ""
        if faults.share >= rules.fault_share:
            return f"{faults.events} faults in {faults.total} replies"
        if errors.share >= rules.error_share:
            return f"{errors.events} errors in {errors.total} replies"
        return ""

    def _advance(self, now: float) -> float:
        """Make the moves that time alone makes, and return the steady seconds."""
        elapsed = self._clock.at(now)
        if self._probes:
            self._give_up(elapsed, now)
        if self._state == "open" and elapsed >= self._until:
            self._move("half-open", now, "the wait is over")
        return elapsed

    def _give_up(self, elapsed: float, now: float) -> None:
        """Wait no longer for probes that are late."""
        late = [number for number, (_, begun) in self._probes.items() if elapsed - begun >= self.rules.probe_s]
        periods = [self._probes.pop(number)[0] for number in late]
        if self._period in periods:  # which is half-open then: only such a period gives probes
            self._outcomes.add(now, False, True)
            self._in_a_row += 1
            self._open(now, f"a probe was not back after {self.rules.probe_s:g} s")

    def _open(self, now: float, reason: str) -> None:
        rules, elapsed = self.rules, self._clock.at(now)
        if self._state == "closed" and elapsed - self._since >= rules.calm_s:
            self._steps = 0
        # A power of two past the longest wait would only overflow.
        wait = min(rules.longest_s, rules.wait_s * 2.0 ** min(self._steps, 60))
        wait *= 1 + rules.jitter * self._random.uniform(-1, 1)
        self._steps += 1
        self.openings += 1
        self._until = elapsed + wait
        self._opened.append(elapsed)
        if len(self._opened) == rules.openings and elapsed - self._opened[0] <= rules.span_s:
            self.verdict = "roll back"
        self._move("open", now, reason, wait)

    def _move(self, target: State, now: float, reason: str, wait_s: float = 0.0) -> None:
        faults, errors = self.rates(now)
        self.transitions.append(
            Transition(now, self._state, target, reason, faults, errors, self._in_a_row, wait_s, self.verdict)
        )
        self._state, self._since = target, self._clock.at(now)
        self._period += 1
        self._successes = self._in_a_row = 0
        self._outcomes.clear()
