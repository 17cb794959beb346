"""One of several ranks of tests/calibrate/test_ranks.py: adds up and tells, or is lost."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.ranks import open_ranks
from tersor.calibrate.sequences import Sequences
from tersor.core.errors import EngineError

OWNER = 1


def main(loses: bool) -> None:
    """Print what this rank has at the end, as one line of JSON."""
    torch.set_num_threads(1)
    inputs = torch.randn(12, 10, 6, generator=torch.Generator().manual_seed(0))
    with open_ranks() as ranks:
        if loses and ranks.rank == OWNER:
            os._exit(7)
        share = ranks.share(Sequences(np.arange(12)[:, None], "", ""), 2).ids[:, 0]
        sums = Sums.empty(6, hessian=True, cross=True, peaks=True)
        for start in range(0, len(share), 2):
            part = inputs[share[start : start + 2]]
            sums.add(part)
            sums.add_pair(part[:1], 2 * part[:1], part[:1, :, :4])
        try:
            ranks.reduce(sums, {OWNER})
        except EngineError as error:
            print(f"told: {error}", flush=True)  # noqa: T201 (the parent reads it)
            os._exit(5)
        data = torch.full((3,), ranks.rank, dtype=torch.uint8)
        ranks.broadcast(data, OWNER)
        found = {
            "rank": ranks.rank,
            "share": share.tolist(),
            "tokens": sums.tokens,
            "paired": sums.paired,
            "squares": sums.importance().tolist(),
            "peaks": [] if sums.peaks is None else sums.peaks.tolist(),
            "parts": [part.tolist() for part in sums.parts()],
            "broadcast": data.tolist(),
            "told": ranks.tell({"from": ranks.rank}, OWNER),
            "total": ranks.total([ranks.rank, 1.0]),
        }
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(loses="--lose" in sys.argv)
