"""What the process of the gateway does beside answering."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

import pytest

from tersor.deploy.gateway import process

PIECES, PIECE = 20_000, 3000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_memory_below_what_is_in_use_is_given_back() -> None:
    pieces = [bytes(PIECE) for _ in range(PIECES)]
    last = pieces[-1]  # lies above all others, and keeps the heap from shrinking by itself
    before = _resident()
    del pieces
    process._trim()()
    assert before - _resident() > PIECES * PIECE / 2
    assert last == bytes(PIECE)


def test_it_is_given_back_for_as_long_as_the_gateway_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(process, "TRIM_S", 0.001)
    monkeypatch.setattr(process, "_trim", lambda: lambda: counted.append(1))

    async def run() -> None:
        async with process._trimmed():
            while len(counted) < 3:
                await asyncio.sleep(0.001)
        there = len(counted)
        await asyncio.sleep(0.01)
        assert len(counted) == there

    asyncio.run(asyncio.wait_for(run(), 10))


def test_another_c_library_has_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert process._trim()() is None
