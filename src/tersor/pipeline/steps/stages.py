"""Stages side by side: generators that run ahead in threads of their own, one item deep."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

__all__ = ["Clock", "run_ahead", "start"]

Item = TypeVar("Item")

_POLL_S = 0.05


@dataclass
class _Failure:
    error: BaseException


class _End:
    pass


def run_ahead(items: Iterable[Item], depth: int = 1) -> Generator[Item, None, None]:
    """Yield `items` in order, made by a thread that works at most `depth` items ahead.

    An error of the thread is raised here, at its place in the order. When the consumer stops early, the thread ends
    after the item it is working on, and the generator behind `items` is closed in it.
    """
    ready: queue.Queue[Item | _Failure | _End] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_work, args=(items, ready, stopped), name="tersor-stage", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()


def start(work: Callable[[], Item]) -> Future[Item]:
    """Begin `work` in a thread that does not keep the process alive, and return its result to be."""
    future: Future[Item] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="tersor-background", daemon=True).start()
    return future


def _work(items: Iterable[Item], ready: queue.Queue[Item | _Failure | _End], stopped: threading.Event) -> None:
    """Put every item, then the end or the failure; give up when nobody takes them any more."""
    iterator: Iterator[Item] = iter(items)
    last: _Failure | _End = _End()
    try:
        for item in iterator:
            if not _put(ready, item, stopped):
                break
    except BaseException as error:
        last = _Failure(error)
    finally:
        if isinstance(iterator, Generator):
            iterator.close()
    _put(ready, last, stopped)


def _put(ready: queue.Queue[Item], item: Item, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False


@dataclass
class Clock:
    """Seconds spent in each stage; each stage is timed by one thread alone."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage `name`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
