"""Stages that run ahead: order, errors, and that nothing is left running."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from tersor.pipeline.steps.stages import Clock, run_ahead, start


def stage_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tersor-stage"]


def test_items_come_in_order_through_several_stages() -> None:
    doubled = run_ahead(2 * item for item in run_ahead(iter(range(200))))
    assert list(doubled) == list(range(0, 400, 2))
    assert stage_threads() == []


def test_an_empty_stage_ends_at_once() -> None:
    assert list(run_ahead(iter(()))) == []


def test_a_stage_works_ahead_but_only_as_deep_as_told() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    items = run_ahead(source())
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2]  # one taken, one ready, one waiting for room
    items.close()


def test_an_error_comes_out_at_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("row 7 is torn")

    items = run_ahead(run_ahead(source()))
    assert next(items) == 1
    with pytest.raises(ValueError, match="row 7 is torn"):
        next(items)
    assert stage_threads() == []


def test_stopping_early_ends_the_threads_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    inner = run_ahead(source())
    outer = run_ahead(inner)
    assert next(outer) == 0
    outer.close()
    assert closed.wait(5)
    assert stage_threads() == []


def test_background_work_gives_its_result_or_its_error() -> None:
    assert start(lambda: 6 * 7).result(5) == 42

    def fail() -> int:
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        start(fail).result(5)


def test_a_clock_adds_up_each_stage() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.stage("nap"):
            time.sleep(0.01)
    assert 0.02 <= clock.seconds["nap"] < 1
