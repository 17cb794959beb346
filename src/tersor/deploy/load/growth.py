"""How much memory a server keeps of each request, from samples taken while it was asked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError

__all__ = ["growth"]

LEAST = 8
"""Samples without which nothing can be said."""
BLOCKS = 200
"""Medians of so many stretches of samples are compared: the work does not grow with the length of a run."""


def growth(requests: npt.ArrayLike, sizes: npt.ArrayLike, *, warmup: float = 0.2) -> float:
    """Return the bytes that memory grew by a request, less than 0 where it shrank.

    requests  answered so far, [n], never falling
    sizes     bytes that were held then, [n]
    warmup    share of the requests at the beginning that are left out: caches and pools fill up

    The median of the slopes between all pairs (Theil 1950, Sen 1968): a third of the samples may be anything, so that
    single jumps and dips, as allocators make them, do not count as growth.
    Raises FormatError for fewer than 8 samples after the warm-up, and for requests that fall or stand still.

    >>> growth(range(0, 1000, 10), range(0, 500, 5))
    0.5
    """
    x, y = np.asarray(requests, np.float64), np.asarray(sizes, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise FormatError(f"requests and sizes must be finite and as many as each other, got {x.shape} and {y.shape}")
    if (np.diff(x) < 0).any():
        raise FormatError("requests answered so far never become fewer")
    keep = x >= x[0] + warmup * (x[-1] - x[0]) if x.size else x > 0
    if np.count_nonzero(keep) < LEAST or x[-1] == x[0]:
        raise FormatError(
            f"{np.count_nonzero(keep)} samples after the warm-up; {LEAST} are needed, with requests between"
        )
    x, y = (
        np.array([np.median(part) for part in np.array_split(one[keep], min(BLOCKS, keep.sum()))]) for one in (x, y)
    )
    before, after = np.triu_indices(x.size, 1)
    apart = x[after] > x[before]
    return float(np.median((y[after] - y[before])[apart] / (x[after] - x[before])[apart]))
