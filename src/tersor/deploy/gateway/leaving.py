"""Clients that leave before they are answered, or stand there and take nothing: what they hold is for others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tersor.deploy.gateway.heads import CUT, header
from tersor.deploy.running.supervised import RequestError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette import responses
    from starlette.requests import Request
    from starlette.responses import Response
else:
    responses = LazyModule("starlette.responses", "serve")

__all__ = ["stream", "while_there"]

LEFT = 499
"""A status that nobody reads: what servers write down of a client that has left."""
LOOK_S = 0.05
"""Until it is looked after a client: most answers are there by then, and a task for each would cost them a part."""


@asynccontextmanager
async def while_there(request: Request) -> AsyncIterator[None]:
    """Cancel what is done inside once the client has left, whose body was read; RequestError then.

    What has an Idempotency-Key goes on: the client may ask for the same again.
    """
    if header(request, "idempotency-key"):
        yield
        return
    working, looking, has_left = asyncio.current_task(), list[asyncio.Task[None]](), False
    assert working is not None, "a request is answered in a task"

    async def look() -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        working.cancel()

    timer = asyncio.get_running_loop().call_later(LOOK_S, lambda: looking.append(asyncio.create_task(look())))
    try:
        yield
    except asyncio.CancelledError:
        if not has_left or working.uncancel() > 0:
            raise
        raise RequestError("the client has left", LEFT) from None
    finally:
        timer.cancel()
        for task in looking:
            task.cancel()


def stream(events: AsyncGenerator[bytes, None], seconds: float, headers: dict[str, str]) -> Response:
    """Return a stream of events; a client that does not take a part of it in so many seconds is cut off."""

    class Stream(responses.StreamingResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def timely(message: Any) -> None:
                try:
                    async with asyncio.timeout(seconds):
                        await send(message)
                except TimeoutError:
                    scope[CUT]()
                    await send(message)  # until the connection is lost
                    raise ConnectionAbortedError from None

            try:
                with contextlib.suppress(ConnectionAbortedError):
                    await super().__call__(scope, receive, timely)
            finally:
                await events.aclose()  # it may stand between two parts, with all that it holds

    return Stream(events, media_type="text/event-stream", headers=headers)
