"""Where each sentinel draws its line, and why there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.core.errors import SchemeError
from tersor.deploy.guard.findings import SENTINELS

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of all sentinels; SchemeError for one that cannot be.

    window           tokens over which entropy and margin are averaged; a shorter reply is not judged by them
    entropy_floor    nats: a lower mean is a collapse
    entropy_ceiling  share of ln(vocabulary): a higher mean is garbage
    top1_run         predictions in a row that may prefer one token
    loop_period, loop_rounds, loop_length  a loop has a period up to this, as many rounds, as many tokens
    invalid_places   places of a reply that may be no UTF-8
    margin           mean first minus second probability of the first window, below which full precision might differ
    score_margin     the same for one row of scores of a tensor
    constant_rows    inputs of a batch that differ, from which on equal outputs are no accident
    constant_spread  spread of an output over the batch, relative to its largest value, that counts as none
    cap_share        share of replies that may run into the length cap
    cap_replies      of how many last replies that share is taken; a quarter of them at least are needed
    ignored          sentinels that stay silent: those that speak about full precision, too
    """

    # Measured on 2026-11-28, replies of 64 tokens of the embedded model: docs/explanation/guarding-replies.md.
    window: int = 16  # the hold-back of a stream is no shorter, so a longer one delays the first token
    entropy_floor: float = 1e-3  # smallest mean 0.8; of a file whose scales and minima are all zero, 0.000
    entropy_ceiling: float = 0.72  # largest mean 0.70, of a weak model (perplexity 36); a zeroed scale gives 0.87
    top1_run: int = 16  # sampled replies reached 6; of greedy ones 1 in 200 loops on one token
    loop_period: int = 64
    loop_rounds: int = 4  # held_out.txt, 82 thousand tokens, holds no loop of 3 rounds; greedy replies do
    loop_length: int = 32
    invalid_places: int = 0
    margin: float = 0.08  # 4 to 5 % of sound replies lie below: what the budget for hints pays for
    score_margin: float = 0.1  # not measured: depends on the net, see the page
    constant_rows: int = 4  # not measured: two saturated scores are often equal, four of several numbers seldom
    constant_spread: float = 0.0
    cap_share: float = 0.5  # not measured: depends on what the clients ask for
    cap_replies: int = 200
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.window, self.top1_run, self.loop_period, self.loop_length, self.constant_rows, self.cap_replies)
        shares = (self.entropy_ceiling, self.margin, self.score_margin, self.cap_share)
        unknown = sorted(set(self.ignored) - set(SENTINELS))
        if unknown:
            raise SchemeError(f"no sentinel {unknown[0]!r}; there are {', '.join(SENTINELS)}")
        if min(counts) < 1 or self.loop_rounds < 3 or self.invalid_places < 0:
            raise SchemeError(f"counts must be 1 or more, loop_rounds 3, invalid_places 0: {self}")
        if not all(0 <= share <= 1 for share in shares):
            raise SchemeError(f"shares and margins lie between 0 and 1: {self}")
        if not (0 <= self.entropy_floor < math.inf and 0 <= self.constant_spread < math.inf):
            raise SchemeError(f"entropy_floor and constant_spread must be 0 or more: {self}")
