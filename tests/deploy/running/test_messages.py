"""Messages between gateway and engine: whole however the socket cuts them, and refused where they are none."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tersor.deploy.running.channel import Channel
from tersor.deploy.running.messages import HEAD, MAX_JSON, MAX_PAYLOAD, Closed, Message, Unpacker, packed

MESSAGES = st.lists(st.tuples(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.binary(max_size=40)))


@given(MESSAGES, st.lists(st.integers(1, 30), min_size=1))
@example([({"id": 1}, b"abc")], [1])
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    messages: list[tuple[dict[str, Any], bytes]], sizes: list[int]
) -> None:
    data = b"".join(packed(*message) for message in messages)
    unpacker, found, at = Unpacker(), list[Message](), 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        found += unpacker.feed(data[at : at + size])
        at += size
    assert found == messages


@pytest.mark.parametrize(
    "data",
    [HEAD.pack(MAX_JSON + 1, 0), HEAD.pack(2, MAX_PAYLOAD + 1), HEAD.pack(2, 0) + b"[]", HEAD.pack(1, 0) + b"{"],
    ids=["long", "heavy", "a list", "cut off"],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises((Closed, ValueError)):
        list(Unpacker().feed(data))


def test_what_is_sent_in_one_turn_leaves_in_one_piece_and_nonsense_closes() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        taken: list[dict[str, Any]] = []
        channel = await Channel.opened(ours, lambda message, _: taken.append(message))
        for number in range(3):
            channel.send({"id": number}, b"x")
        with pytest.raises(BlockingIOError):
            theirs.recv(1000)
        await asyncio.sleep(0)
        await channel.drained()
        assert list(Unpacker().feed(theirs.recv(1000))) == [({"id": number}, b"x") for number in range(3)]
        theirs.send(packed({"id": 7, "done": True}) + HEAD.pack(2, 0) + json.dumps([]).encode())
        await asyncio.wait_for(asyncio.shield(channel.closed), 10)
        assert taken == [{"id": 7, "done": True}]
        with pytest.raises(ConnectionResetError):
            channel.send({"id": 8})
        with pytest.raises(ConnectionResetError):
            await channel.drained()
        theirs.close()

    asyncio.run(scene())


def test_a_sender_waits_for_an_engine_that_does_not_read() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        channel = await Channel.opened(ours, lambda *_: None)
        channel.send({"id": 1}, bytes(8 << 20))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(channel.drained())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        theirs.close()
        with pytest.raises(ConnectionResetError):
            await waiting

    asyncio.run(scene())
