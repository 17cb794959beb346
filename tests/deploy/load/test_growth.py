"""Growth of memory is told from noise, jumps and warm-up."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.core.errors import FormatError
from tersor.deploy.load.growth import growth

MIB = 1 << 20
LIMIT = MIB / 100_000
"""A megabyte in 100 000 requests."""


def run(leak: float, seed: int, *, samples: int = 600, rate: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Requests and memory of a server that fills its caches, is noisy by pages and keeps `leak` bytes a request."""
    random = np.random.default_rng(seed)
    requests = np.cumsum(random.poisson(rate, samples))
    filling = 30 * MIB * (1 - np.exp(-np.arange(samples) / 15))
    return requests, 70 * MIB + filling + leak * requests + random.normal(0, MIB / 4, samples)


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_told_from_none(seed: int) -> None:
    assert growth(*run(0.0, seed)) < LIMIT / 10
    assert growth(*run(2 * LIMIT, seed)) == pytest.approx(2 * LIMIT, rel=0.1)


def test_a_jump_or_a_dip_is_no_growth() -> None:
    requests, sizes = run(0.0, 0)
    sizes[500:] += 20 * MIB  # a sixth of the samples behind one step
    sizes[300:310] -= 50 * MIB
    assert growth(requests, sizes) < LIMIT / 2


def test_what_was_filled_while_warming_up_does_not_count() -> None:
    requests, sizes = run(0.0, 0)
    assert growth(requests, sizes, warmup=0.0) > growth(requests, sizes)
    filled = np.minimum(np.arange(100.0), 20.0)
    assert growth(np.arange(100), filled, warmup=0.25) == 0


def test_memory_that_shrinks_has_a_negative_slope() -> None:
    assert growth(np.arange(50), -3.0 * np.arange(50)) == -3


@pytest.mark.parametrize(
    ("requests", "sizes", "words"),
    [
        ([], [], "0 samples"),
        (range(5), range(5), "samples after the warm-up"),
        ([7] * 50, range(50), "requests between"),
        ([*range(50), 3], range(51), "never become fewer"),
        (range(50), range(51), "as many as each other"),
        (range(50), [float("nan")] * 50, "finite"),
    ],
)
def test_what_says_nothing_is_refused(requests: list[int], sizes: list[float], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        growth(requests, sizes)
