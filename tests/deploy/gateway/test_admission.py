"""The door: never more inside than fit, first come first in, nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.deploy.gateway.admission import Admission, BusyError, RateLimit


def played(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(bounded())


def soon(seconds: float = 10) -> float:
    return asyncio.get_running_loop().time() + seconds


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.integers(0, 3), min_size=1, max_size=25))
def test_never_more_inside_than_fit_and_all_places_are_free_again(fits: int, queue: int, stays: list[int]) -> None:
    async def scene() -> None:
        door = Admission(fits, queue)
        inside = most = refused = 0

        async def visit(turns: int) -> None:
            nonlocal inside, most, refused
            try:
                async with door.entered(soon()):
                    inside += 1
                    most = max(most, inside)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    inside -= 1
            except BusyError:
                refused += 1

        await asyncio.gather(*[visit(turns) for turns in stays])
        assert most <= fits
        assert refused <= max(0, len(stays) - fits - queue)
        assert (door.active, door.waiting, inside) == (0, 0, 0)

    played(scene)


def test_who_came_first_goes_in_first() -> None:
    async def scene() -> None:
        door, order = Admission(1, 9), []

        async def visit(name: int) -> None:
            async with door.entered(soon()):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(*[visit(name) for name in range(8)])
        assert order == list(range(8))

    played(scene)


def test_who_waits_too_long_or_leaves_keeps_no_place() -> None:
    async def scene() -> None:
        door = Admission(1, 2)
        async with door.entered(soon()):
            with pytest.raises(BusyError, match="no place before the deadline") as caught:
                async with door.entered(soon(0.02)):
                    raise AssertionError("it came in")
            assert caught.value.retry_after >= 1
            left = asyncio.create_task(door.entered(soon()).__aenter__())
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            assert (door.active, door.waiting) == (1, 0)
        assert (door.active, door.waiting) == (0, 0)

    played(scene)


def test_a_place_that_is_given_to_one_who_leaves_goes_to_the_next() -> None:
    async def scene() -> None:
        door = Admission(1, 2)
        holder = door.entered(soon())
        await holder.__aenter__()
        leaver = asyncio.create_task(door.entered(soon()).__aenter__())
        next_one = asyncio.create_task(door.entered(soon()).__aenter__())
        await asyncio.sleep(0)
        await holder.__aexit__(None, None, None)  # the place is the leaver's from here on
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        await next_one
        assert (door.active, door.waiting) == (1, 0)

    played(scene)


def test_a_rate_is_kept_and_a_clock_that_goes_back_gives_nothing() -> None:
    now = 0.0
    limit = RateLimit(60, clock=lambda: now)
    assert [limit.take() for _ in range(7)] == [0] * 6 + [1]
    now = -100.0
    assert limit.take() == 1
    now = -98.9
    assert limit.take() == 0
    taken = 0
    for step in range(600):
        now = step / 10
        taken += limit.take() == 0
    assert 58 <= taken <= 67
