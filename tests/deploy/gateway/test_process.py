"""What the process of the gateway does beside answering."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tersor.deploy.config import Deployment
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


def test_an_address_of_version_6_is_listened_on() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("the machine has no IPv6")
    with process._listening(Deployment({}, host="::1", port=0)) as listener:
        assert listener.getsockname()[0] == "::1"
    with process._listening(Deployment({}, port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
