"""Several requests that wait become one call of a net: arrays are put together by their first axis, and parted again.

While one batch computes, the next one gathers. A batch that fails is computed again request by request, so that one
that is wrong harms no other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Batcher", "Compute", "Dropped"]

Array: TypeAlias = npt.NDArray[Any]
Compute: TypeAlias = Callable[[Sequence[str], Mapping[str, Array]], list[Array]]


class Dropped(Exception):  # noqa: N818 (an end, and no error)
    """Nobody waited for it any more when its turn came."""


@dataclass(eq=False)
class _Waiting:
    wanted: tuple[str, ...]
    feeds: Mapping[str, Array]
    rows: int
    is_cancelled: Callable[[], bool]
    arrived: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    made: list[Array] = field(default_factory=list)
    failure: Exception | None = None
    together: int = 1

    @property
    def key(self) -> tuple[Any, ...]:
        """What requests have to share to be put together."""
        return self.wanted, tuple(sorted((name, one.dtype.str, one.shape[1:]) for name, one in self.feeds.items()))


class Batcher:
    """Computes in one thread of its own.

    most    rows of a batch; a request with more goes alone, and at once
    wait_s  that the first request of a batch waits for others; 0: those that are there already make the batch
    """

    def __init__(self, compute: Compute, most: int, wait_s: float) -> None:
        self._compute, self._most, self._wait_s = compute, most, wait_s
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True, name="batches").start()

    def run(
        self, wanted: tuple[str, ...], feeds: Mapping[str, Array], is_cancelled: Callable[[], bool]
    ) -> tuple[list[Array], int]:
        """Return the wanted outputs, and the number of requests that were computed with this one, itself among them.

        Raises what the net raises of this request alone, and Dropped.
        """
        sizes = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
        rows = sizes.pop() if len(sizes) == 1 else 0
        if not 0 < rows <= self._most:
            return self._compute(wanted, feeds), 1
        mine = _Waiting(wanted, feeds, rows, is_cancelled)
        with self._changed:
            self._queue.append(mine)
            self._changed.notify()
        mine.done.wait()
        if mine.failure is not None:
            raise mine.failure
        return mine.made, mine.together

    def _serve(self) -> None:
        while True:
            batch = self._next()
            try:
                self._answer(batch)
            except Exception as error:  # of whatever kind, nobody may wait for ever
                for one in batch:
                    one.failure = error
            for one in batch:
                one.done.set()

    def _next(self) -> list[_Waiting]:
        """Wait for a batch that is full, or whose first request has waited long enough."""
        with self._changed:
            while True:
                self._drop()
                if not self._queue:
                    self._changed.wait()
                    continue
                first = self._queue[0]
                alike = [one for one in self._queue if one.key == first.key]
                batch, rows = [], 0
                for one in alike:
                    if rows + one.rows <= self._most:
                        batch.append(one)
                        rows += one.rows
                is_full = rows == self._most or len(batch) < len(alike)
                left = first.arrived + self._wait_s - time.monotonic()
                if is_full or left <= 0:
                    for one in batch:
                        self._queue.remove(one)
                    return batch
                self._changed.wait(left)

    def _drop(self) -> None:
        for one in [one for one in self._queue if one.is_cancelled()]:
            self._queue.remove(one)
            one.failure = Dropped()
            one.done.set()

    def _answer(self, batch: list[_Waiting]) -> None:
        if len(batch) > 1:
            try:
                self._together(batch)
                return
            except Exception:  # noqa: S110 (each is computed anew, and raises what is its own)
                pass
        for one in batch:
            try:
                one.made, one.together = self._compute(one.wanted, one.feeds), 1
            except Exception as error:
                one.failure = error

    def _together(self, batch: list[_Waiting]) -> None:
        first, total = batch[0], sum(one.rows for one in batch)
        feeds = {name: np.concatenate([one.feeds[name] for one in batch]) for name in first.feeds}
        made = self._compute(first.wanted, feeds)
        if any(array.ndim == 0 or array.shape[0] != total for array in made):
            raise ValueError("the net made another number of rows")
        at = 0
        for one in batch:
            one.made, one.together = [array[at : at + one.rows] for array in made], len(batch)
            at += one.rows
