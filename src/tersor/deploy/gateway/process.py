"""The gateway as a process: listens, and ends so that every request it took is answered.

SIGTERM and SIGINT: readiness goes down, no connection is taken any more, what is being answered ends (at most
`drain_s`), then the engines do. A second signal ends at once. SIGHUP reads the deployment anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from tersor.core.errors import MissingError
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.app import Gateway
from tersor.deploy.gateway.heads import bounded_protocol
from tersor.kernels.lazy import LazyModule
from tersor.targets.memory import give_back

if TYPE_CHECKING:
    import uvicorn
else:
    uvicorn = LazyModule("uvicorn", "serve")

__all__ = ["serve"]

KEEP_ALIVE_S = 30
GARBAGE = 10_000
"""New objects after which garbage is looked for: a request makes some hundreds, and leaves hardly any behind."""

TRIM_S = 20.0
"""Between two times that memory which the C library keeps for nothing is given back."""


def serve(gateway: Gateway, tell: Callable[[str], None]) -> None:
    """Serve until a signal says otherwise; `tell` is told the address once all models are ready.

    Raises EngineError where a model cannot be loaded, QualityError and MissingError where one may not serve,
    MissingError where the address is taken.
    """
    asyncio.run(_serve(gateway, tell))


async def _serve(gateway: Gateway, tell: Callable[[str], None]) -> None:
    deployment, loop = gateway.deployment, asyncio.get_running_loop()
    with _listening(deployment) as listener:
        loop.add_signal_handler(signal.SIGHUP, gateway.hang_up)  # from here on: by itself, the signal would end us
        try:
            async with gateway.running(), _trimmed():
                # What is there now stays: looking through it for garbage would hold up requests, 10 ms each time.
                gc.collect()
                gc.freeze()
                gc.set_threshold(GARBAGE)
                host = f"[{deployment.host}]" if listener.family == socket.AF_INET6 else deployment.host
                tell(f"http://{host}:{listener.getsockname()[1]}")
                await _server(gateway, deployment).serve(sockets=[listener])
        finally:
            loop.remove_signal_handler(signal.SIGHUP)


@contextlib.asynccontextmanager
async def _trimmed() -> AsyncIterator[None]:
    """Give memory back all the while.

    What is read from a socket begins as 256 KiB and is cut to what came: in between the cuts the heap of glibc keeps
    holes, that it never gives back by itself. They grow by 2 MB in 100 000 requests, while what is in use does not.
    """

    async def trimming() -> None:
        while True:
            await asyncio.sleep(TRIM_S)
            give_back()  # takes a fifth of a millisecond

    task = asyncio.create_task(trimming(), name="trim")
    try:
        yield
    finally:
        task.cancel()


def _server(gateway: Gateway, deployment: Deployment) -> Any:
    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            self.force_exit = self.force_exit or self.should_exit
            gateway.draining = self.should_exit = True
            del sig, frame

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Take signals for as long as the server runs; its own way ends the process before the engines are."""
            loop, taken = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
            for one in taken:
                loop.add_signal_handler(one, self.handle_exit, one, None)
            try:
                yield
            finally:
                for one in taken:
                    loop.remove_signal_handler(one)

    settings = uvicorn.Config(
        gateway.app(),
        http=bounded_protocol(deployment.receive_s),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(deployment.drain_s),
    )
    return Server(settings)


def _listening(deployment: Deployment) -> socket.socket:
    """Return a socket that listens; the address is taken before any model is loaded."""
    try:
        family = socket.AF_INET6 if ":" in deployment.host else socket.AF_INET
        listener = socket.create_server((deployment.host, deployment.port), family=family, backlog=1024)
        # Connections inherit it. asyncio sets it only on sockets that name their protocol; without, the two pieces of a
        # response wait 40 ms for each other.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise MissingError(
            f"{deployment.host}:{deployment.port} cannot be listened on ({error.strerror}); give another port"
        ) from error
