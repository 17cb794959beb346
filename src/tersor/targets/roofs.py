"""What this machine can do at most: bytes read from memory and multiply-adds per second.

A model that generates one token after another reads all its weights for each: memory sets its roof. A prompt is
evaluated many tokens at once: arithmetic sets its roof.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, cast

import numpy as np

from tersor.core.errors import SchemeError
from tersor.kernels import codec
from tersor.targets.memory import available_bytes
from tersor.targets.processor import processor

__all__ = ["Roofs", "fastest", "measure_roofs"]

LEAST_BUFFER = 256 << 20
MOST_BUFFER = 2 << 30
TIMES_CACHE = 4
"""A buffer this many times the last-level cache leaves it no more than a quarter of a pass."""
PASSES = 8
STEPS = 1 << 20
"""Of the arithmetic loops: about 3 ms a pass."""
STEPS_OF_TILES = 16
"""A step of the matrix unit takes so many times as long."""
_SIDE = 768
"""Of the square matrices of the fallback."""


@dataclass(frozen=True, slots=True)
class Roofs:
    """The best of several passes.

    read_bytes_per_s  from memory, all threads together
    float_flops       float32 operations per second: two a multiply-add
    byte_ops          int8 operations per second, two a multiply-add; None where the processor has no instruction for
                      sums of int8 products, or nothing compiled could measure it
    matrix_ops        the same by a unit for products of int8 matrices (Intel AMX); None: there is none
    method            what measured: the native kernels and their instruction set, or numpy
    """

    threads: int
    read_bytes_per_s: float
    float_flops: float
    byte_ops: float | None
    buffer_bytes: int
    method: str
    seconds: float
    matrix_ops: float | None = None

    @property
    def int8_ops(self) -> float | None:
        """Int8 operations per second by whatever does most of them: the roof of an engine that may use all there is."""
        return fastest(self.byte_ops, self.matrix_ops)


def fastest(*rates: float | None) -> float | None:
    """Return the highest rate of those that are known; None where none is."""
    return max((rate for rate in rates if rate is not None), default=None)


class _Native(Protocol):
    def read_rate(self, bytes: int, threads: int, passes: int) -> float: ...  # noqa: A002 (the native name)
    def multiply_rate(self, what: str, steps: int, threads: int, passes: int) -> float: ...
    def isa(self) -> str: ...


def measure_roofs(threads: int, *, buffer_bytes: int | None = None) -> Roofs:
    """Measure with `threads` threads, in about a second.

    buffer_bytes  to read; None: 4 times the last-level cache, 256 MiB to 2 GiB, at most an eighth of the free memory
    """
    if threads < 1 or (buffer_bytes is not None and buffer_bytes < 1):
        raise SchemeError(f"threads and buffer_bytes must be positive, got {threads} and {buffer_bytes}")
    size = _buffer_bytes() if buffer_bytes is None else buffer_bytes
    module = codec.native()
    began = perf_counter()
    if module is not None and hasattr(module, "read_rate"):
        native = cast("_Native", module)
        read = max(native.read_rate(size, threads, PASSES) for _ in range(2))
        floats, products, squares = (
            2 * native.multiply_rate(what, STEPS // share, threads, 2 * PASSES)
            for what, share in (("floats", 1), ("bytes", 1), ("tiles", STEPS_OF_TILES))
        )
        how, took = f"native ({native.isa()})", perf_counter() - began
        return Roofs(threads, read, floats, products or None, size, how, took, squares or None)
    read, floats = _read_rate(size, threads), _product_rate()
    return Roofs(threads, read, floats, None, size, "numpy, which may reach less", perf_counter() - began)


def _buffer_bytes() -> int:
    wanted = min(max(LEAST_BUFFER, TIMES_CACHE * (processor().cache_bytes or 0)), MOST_BUFFER)
    free = available_bytes()
    return wanted if free is None else max(1 << 20, min(wanted, free // 8))


def _read_rate(size: int, threads: int) -> float:
    """Bytes summed by numpy in a second."""
    parts = [np.ones(max(1, size // threads // 8), np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _shortest(lambda: sum(int(total) for total in pool.map(np.bitwise_or.reduce, parts)))
    return sum(part.nbytes for part in parts) / seconds


def _product_rate() -> float:
    """Operations of a float32 matrix product by numpy's own library, on as many threads as that takes."""
    a = np.full((_SIDE, _SIDE), 0.5, np.float32)
    return 2 * _SIDE**3 / _shortest(lambda: float((a @ a)[0, 0]))


def _shortest(work: Callable[[], object]) -> float:
    least = float("inf")
    for _ in range(PASSES):
        began = perf_counter()
        work()
        least = min(least, perf_counter() - began)
    return least
