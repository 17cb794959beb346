"""The wealth of bets against a claim: evidence that may be looked at, and acted on, at any time.

Each bet multiplies its stake by a factor whose mean is at most 1 while the claim holds. Whoever holds several bets and
some cash then reaches 1/level, ever, with a probability of at most `level`: Ville's inequality (1939). That is what
makes looking after every request honest. Source: Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic statistics and
safe anytime-valid inference", Statistical Science 38.

A candidate may turn bad late, after its good time has emptied the purse of every bet. So a tenth of the money is kept
back, of which a new round of the same bets gets a share every few hundred samples: a half, a sixth, a twelfth …
A mixture of such rounds is a fair game as well; the first round pays log(0.9) for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError

__all__ = ["Wealth", "opened"]

Float64: TypeAlias = npt.NDArray[np.float64]

KEPT = 0.1
MOST = 10**15


@dataclass(frozen=True, slots=True)
class Wealth:
    """What bets against one claim have made of 1 so far.

    level       probability that it ever reaches 1/level although the claim holds, 0 < level < 1
    stakes      share of a round's money in each bet, [bets], sum 1
    money       log of what all rounds of each bet are worth, [bets]
    reopens     samples from one round to the next; 0: one round only
    rounds      rounds after the first that have opened
    samples     requests (pairs, answers) that were bet on
    peak        largest log wealth at any sample
    crossed_at  sample at which the wealth first reached 1/level; None: not yet
    """

    level: float
    stakes: tuple[float, ...]
    money: tuple[float, ...]
    reopens: int = 0
    rounds: int = 0
    samples: int = 0
    peak: float = 0.0
    crossed_at: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise SchemeError(f"a level lies between 0 and 1, such as 0.01, got {self.level:g}")
        if not self.stakes or min(self.stakes) <= 0 or abs(math.fsum(self.stakes) - 1) > 1e-9:
            raise SchemeError(f"stakes must be positive and sum to 1, got {self.stakes}")
        if len(self.money) != len(self.stakes) or any(math.isnan(log) or log == math.inf for log in self.money):
            raise SchemeError(f"{len(self.stakes)} stakes need as many logs of money, none NaN or infinite")
        if not all(0 <= number <= MOST for number in (self.samples, self.reopens, self.rounds)):
            raise SchemeError("samples, reopens and rounds are 0 or more, and below 10^15")

    @property
    def boundary(self) -> float:
        """The log wealth that refutes the claim."""
        return -math.log(self.level)

    @property
    def log_wealth(self) -> float:
        """The log of what all rounds and the cash are worth now."""
        return float(_worth(np.array([self.money]), self.rounds, self.reopens)[0])

    @property
    def is_refuted(self) -> bool:
        """Whether the claim was refuted, now or earlier."""
        return self.crossed_at is not None

    @property
    def nearness(self) -> float:
        """How near the wealth is to the boundary, 0 … 1 in logarithms; 1 once it was reached."""
        return 1.0 if self.is_refuted else min(1.0, max(0.0, self.log_wealth / self.boundary))

    def advance(self, factors: npt.ArrayLike, sizes: npt.ArrayLike) -> Wealth:
        """Return the wealth after more bets.

        factors  [n, bets]: the log factor of every bet, in order of time
        sizes    [n]: samples that each row stands for, ≥ 1
        """
        logs, counts = np.asarray(factors, np.float64), np.asarray(sizes, np.int64)
        if logs.ndim != 2 or logs.shape != (len(counts), len(self.stakes)):
            raise SchemeError(f"{len(counts)} rows of {len(self.stakes)} factors are needed, got shape {logs.shape}")
        if not len(counts):
            return self
        if counts.min() < 1 or np.isnan(logs).any() or (logs == np.inf).any():
            raise SchemeError("a row of bets stands for one sample or more, and no factor is NaN or infinite")
        before = self.samples + np.concatenate([[0], np.cumsum(counts)[:-1]])
        money, peak, crossed_at, row = np.array(self.money), self.peak, self.crossed_at, 0
        rounds, stakes = self.rounds, np.log(np.array(self.stakes))
        while row < len(counts):
            due = int(before[row]) // self.reopens if self.reopens else 0
            if due > rounds:
                money = np.logaddexp(money, stakes + math.log(KEPT / (rounds + 1) - KEPT / (due + 1)))
                rounds = due
            stop = len(counts)
            if self.reopens:
                stop = int(np.searchsorted(before, (rounds + 1) * self.reopens))
            path = money + np.cumsum(logs[row:stop], axis=0)
            worth = _worth(path, rounds, self.reopens)
            over = np.flatnonzero(worth >= self.boundary)
            if crossed_at is None and over.size:
                crossed_at = int(before[row + over[0]] + counts[row + over[0]])
            money, peak, row = path[-1], max(peak, float(worth.max())), stop
        total = self.samples + int(counts.sum())
        return replace(
            self, money=tuple(map(float, money)), rounds=rounds, samples=total, peak=peak, crossed_at=crossed_at
        )


def opened(level: float, stakes: tuple[float, ...], *, reopens: int = 0) -> Wealth:
    """Return wealth 1, before the first bet.

    >>> opened(0.01, (1.0,)).advance([[2.0], [3.0]], [1, 1]).crossed_at
    2
    """
    first = 1 - KEPT if reopens else 1.0
    return Wealth(
        level, stakes, tuple(math.log(first * stake) if stake > 0 else -math.inf for stake in stakes), reopens
    )


def _worth(path: Float64, rounds: int, reopens: int) -> Float64:
    """Log wealth [n] of the log of bets, [n, bets], and of the cash that the rounds left."""
    cash = math.log(KEPT / (rounds + 1)) if reopens else -math.inf
    return np.asarray(np.logaddexp(np.logaddexp.reduce(path, axis=1), cash), np.float64)
