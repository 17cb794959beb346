"""Loops in a stream of tokens, found as soon as they are long enough, in constant time a token and bounded memory.

For m = 1, 2, 4, … the last m tokens are a window. In a loop of period p ≤ m, once round, each window was last seen
exactly p tokens before: the period is the shortest, so nothing nearer can be equal. It is enough to remember where each
window was last, and for how many tokens in a row that distance has been the same. Windows are compared by rolling
hashes; before a loop is reported its tokens are compared one by one, so that no collision can make one up.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.core.errors import SchemeError

__all__ = ["Loop", "LoopDetector"]

_MODULUS, _BASE = 2**61 - 1, 1_000_003


@dataclass(frozen=True, slots=True)
class Loop:
    """The last `length` tokens go round in a circle of `period`."""

    period: int
    length: int

    @property
    def rounds(self) -> float:
        """How many times the circle was gone round."""
        return self.length / self.period


class LoopDetector:
    """Finds stretches of `length` tokens or more that repeat a period `rounds` times or more.

    longest  the longest period; any up to this one is found
    rounds   3 or more: twice is a quotation
    length   tokens of a loop at least, so that "0, 0, 0" is none

    Time a token is about log2(longest) dictionary accesses (amortised); memory is bounded by longest · rounds + length.
    Raises SchemeError for limits below 1, or rounds below 3.

    >>> detector = LoopDetector(longest=8, rounds=3, length=6)
    >>> [loop for token in (5, 1, 2, 1, 2, 1, 2) if (loop := detector.add(token))]
    [Loop(period=2, length=6)]
    """

    def __init__(self, *, longest: int, rounds: int, length: int) -> None:
        if longest < 1 or length < 1 or rounds < 3:
            raise SchemeError(f"a loop needs a period, a length and 3 rounds, got {longest}, {length} and {rounds}")
        self._rounds, self._length = rounds, length
        self._ring = [-1] * (max(length, longest * rounds) + 1)
        self._count = 0
        self._levels = [_Level(2**power, 2 * longest) for power in range((longest - 1).bit_length() + 1)]
        self._longest = longest
        self._early: list[int] = []

    def add(self, token: int) -> Loop | None:
        """Take the next token, and return the loop that it completes or continues; the one with the shortest period."""
        if self._count == 0:
            # Most answers are short: nothing is looked for before a loop could be long enough.
            self._early.append(token)
            if len(self._early) < self._length:
                return None
            *before, token = self._early
            self._early = []
            for one in before:
                self._step(one)
        return self._step(token)

    def _step(self, token: int) -> Loop | None:
        position, ring = self._count, self._ring
        ring[position % len(ring)] = token
        self._count += 1
        for level in self._levels:
            leaving = ring[(position - level.size) % len(ring)] if position >= level.size else None
            period, length = level.add(position, token, leaving)
            if not period:  # most often
                continue
            # A loop that goes on beyond what the ring holds is still one; only its end can be compared.
            needed = max(self._length, self._rounds * period)
            if period <= self._longest and length >= needed and self._is_loop(period, needed):
                return Loop(period, length)
        return None

    def _is_loop(self, period: int, length: int) -> bool:
        """Compare the last `length` tokens with those `period` before."""
        ring, size, last = self._ring, len(self._ring), self._count - 1
        return all(ring[(last - k) % size] == ring[(last - k - period) % size] for k in range(length - period))


class _Level:
    """Windows of `size` tokens: where each was last, among the last `reach` ones."""

    __slots__ = ("_distance", "_factor", "_hash", "_reach", "_recent", "_run", "_seen", "size")

    def __init__(self, size: int, reach: int) -> None:
        self.size, self._reach = size, reach
        self._factor = pow(_BASE, size, _MODULUS)
        self._hash = self._distance = self._run = 0
        self._seen: dict[int, int] = {}
        self._recent = [0] * reach

    def add(self, position: int, token: int, leaving: int | None) -> tuple[int, int]:
        """Return the distance to the last equal window and how many tokens now repeat at that distance; 0, 0: none."""
        # Ids are shifted by one, so that leading zeros count; what leaves has weight base^size once the new one is in.
        self._hash = (self._hash * _BASE + token + 1) % _MODULUS
        if leaving is not None:
            self._hash = (self._hash - (leaving + 1) * self._factor) % _MODULUS
        if position < self.size - 1:
            return 0, 0
        place = position % self._reach
        if position - self._reach >= self.size - 1 and self._seen.get(self._recent[place]) == position - self._reach:
            del self._seen[self._recent[place]]
        before = self._seen.get(self._hash)
        self._seen[self._hash], self._recent[place] = position, self._hash
        distance = 0 if before is None else position - before
        self._run = self._run + 1 if distance and distance == self._distance else bool(distance)
        self._distance = distance
        return (distance, self.size + distance + self._run - 1) if distance else (0, 0)
