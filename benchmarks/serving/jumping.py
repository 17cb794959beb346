"""`tersor serve` on a machine whose wall clock jumps two hours, forward or back, every second.

python benchmarks/serving/jumping.py DEPLOYMENT --port 0
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tersor.cli.main import main

HOUR_S = 3600.0


def jumping(real: Callable[[], float] = time.time) -> float:
    """Return a wall clock's seconds, an hour ahead or behind, the other each second."""
    now = real()
    return now + HOUR_S * (int(now) % 2 * 2 - 1)


if __name__ == "__main__":
    time.time = jumping
    sys.argv = ["tersor", "serve", *sys.argv[1:]]
    main()
