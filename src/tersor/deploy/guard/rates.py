"""How often something happens: the last n outcomes, or those of the last seconds, in memory that traffic does not grow.

A clock is a number of seconds that the caller hands in. It should be monotonic; where it is not, time stands still
while it jumps back and goes on from there, so that neither a negative age nor a frozen window can arise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from tersor.core.errors import SchemeError

__all__ = ["CountWindow", "Rate", "SteadyClock", "TimeWindow"]


@dataclass(frozen=True, slots=True)
class Rate:
    """`events` of `total` outcomes."""

    events: int
    total: int

    @property
    def share(self) -> float:
        """Events over outcomes, 0 to 1; 0 where there is no outcome."""
        return self.events / self.total if self.total else 0.0

    def at_least(self, confidence: float = 0.95) -> float:
        """Return the end from below of the share's one-sided interval (Wilson 1927); 0 where there is no outcome.

        Outcomes are taken as independent.

        >>> round(Rate(8, 10).at_least(), 3), Rate(0, 10).at_least()
        (0.541, 0.0)
        """
        if not self.events:
            return 0.0
        z = NormalDist().inv_cdf(confidence)
        n, p = self.total, self.share
        return (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


class SteadyClock:
    """Seconds that never go back, whatever the caller's clock does.

    >>> clock = SteadyClock()
    >>> [clock.at(now) for now in (100.0, 103.0, 50.0, 51.0)]
    [0.0, 3.0, 3.0, 4.0]
    """

    __slots__ = ("_elapsed", "_last")

    def __init__(self) -> None:
        self._last: float | None = None
        self._elapsed = 0.0

    def at(self, now: float) -> float:
        """Return the seconds that have passed since the first call; SchemeError for NaN and infinity."""
        if not math.isfinite(now):
            raise SchemeError(f"a clock shows finite seconds, got {now}")
        if self._last is not None and now > self._last:
            self._elapsed += now - self._last
        self._last = now
        return self._elapsed


class CountWindow:
    """The last `size` outcomes, one byte each.

    Raises SchemeError where `size` is below 1.

    >>> window = CountWindow(3)
    >>> for happened in (True, True, False, False):
    ...     window.add(happened)
    >>> window.rate
    Rate(events=1, total=3)
    """

    __slots__ = ("_events", "_next", "_ring", "_total")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise SchemeError(f"a window holds 1 outcome or more, got {size}")
        self._ring = bytearray(size)
        self._next = self._total = self._events = 0

    def add(self, happened: bool) -> None:
        """Count one outcome; the oldest leaves a full window."""
        self._events += happened - self._ring[self._next]
        self._ring[self._next] = happened
        self._next = (self._next + 1) % len(self._ring)
        self._total = min(self._total + 1, len(self._ring))

    @property
    def rate(self) -> Rate:
        """What the window holds."""
        return Rate(self._events, self._total)


class TimeWindow:
    """Outcomes of the last `span_s` seconds, in `slots` slots that leave one after the other.

    An outcome is counted for at least span_s · (1 - 1/slots) seconds and never for longer than span_s. A clock that
    jumps forward by more than the span empties the window.
    kinds  of outcomes that are counted side by side: what one request tells is one call
    Raises SchemeError where the span is not positive and finite, there are fewer than 2 slots, or no kinds.

    >>> window = TimeWindow(10.0, kinds=2)
    >>> window.add(0.0, True, False), window.add(6.0, False, None)
    (None, None)
    >>> window.rates(6.0)
    (Rate(events=1, total=2), Rate(events=0, total=1))
    >>> window.rate(12.0)
    Rate(events=0, total=1)
    """

    __slots__ = ("_clock", "_event_sums", "_events", "_newest", "_now", "_rates", "_slot_s", "_total_sums", "_totals")

    def __init__(self, span_s: float, *, slots: int = 20, kinds: int = 1) -> None:
        if not (0 < span_s < math.inf and slots >= 2 and kinds >= 1):
            raise SchemeError(
                f"a window spans positive seconds in 2 slots or more of 1 kind or more, got {span_s} s in {slots}, "
                f"{kinds} kinds"
            )
        self._clock = SteadyClock()
        self._slot_s = span_s / slots
        self._newest = 0
        self._now = math.nan
        self._event_sums, self._total_sums = [0] * kinds, [0] * kinds
        self._events = [[0] * kinds for _ in range(slots)]
        self._totals = [[0] * kinds for _ in range(slots)]
        self._rates: tuple[Rate, ...] | None = None

    def add(self, now: float, *happened: bool | None) -> None:
        """Count one outcome of each kind at `now` seconds; None: there is none of that kind."""
        place = self._turn(now)
        events, totals = self._events[place], self._totals[place]
        event_sums, total_sums = self._event_sums, self._total_sums
        for kind, one in enumerate(happened):
            if one is not None:
                totals[kind] += 1
                total_sums[kind] += 1
                if one:
                    events[kind] += 1
                    event_sums[kind] += 1
        self._rates = None

    def rates(self, now: float) -> tuple[Rate, ...]:
        """Return what happened of each kind in the span before `now` seconds."""
        self._turn(now)
        if self._rates is None:
            self._rates = tuple(map(Rate, self._event_sums, self._total_sums))
        return self._rates

    def rate(self, now: float) -> Rate:
        """Return what happened of the first kind in the span before `now` seconds."""
        return self.rates(now)[0]

    def clear(self) -> None:
        """Forget all outcomes."""
        for counts in (self._event_sums, self._total_sums, *self._events, *self._totals):
            counts[:] = [0] * len(counts)
        self._rates = None

    def _turn(self, now: float) -> int:
        """Empty the slots that the clock has passed since the last call, and return that of `now`."""
        slots = len(self._totals)
        if now == self._now:  # the calls for one request are many, and at one time
            return self._newest % slots
        current = int(self._clock.at(now) // self._slot_s)
        self._now = now
        if current != self._newest:  # seldom: most calls come in the slot of the one before
            for number in range(max(self._newest + 1, current - slots + 1), current + 1):
                for counts, sums in ((self._events, self._event_sums), (self._totals, self._total_sums)):
                    left = counts[number % slots]
                    sums[:] = [total - gone for total, gone in zip(sums, left, strict=True)]
                    left[:] = [0] * len(left)
            self._newest, self._rates = current, None
        return current % slots
