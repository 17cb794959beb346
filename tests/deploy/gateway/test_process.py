"""What the process of the gateway does beside answering."""

from __future__ import annotations

import asyncio

import pytest

from tersor.deploy.gateway import process


def test_memory_is_given_back_for_as_long_as_the_gateway_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(process, "TRIM_S", 0.001)
    monkeypatch.setattr(process, "give_back", lambda: counted.append(1))

    async def run() -> None:
        async with process._trimmed():
            while len(counted) < 3:
                await asyncio.sleep(0.001)
        there = len(counted)
        await asyncio.sleep(0.01)
        assert len(counted) == there

    asyncio.run(asyncio.wait_for(run(), 10))
