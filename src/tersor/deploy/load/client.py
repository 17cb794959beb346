"""A bounded set of kept connections to one server; whatever goes wrong on them has a name."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.deploy.load.exchange import MAX_HEADER_BYTES, Address, ExchangeError, Head, Take, exchange

__all__ = ["Client", "tls_context"]

CLOSING_S = 1.0
"""How long a connection may take to say goodbye."""
OUT_OF_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)
"""This machine has no more files, buffers or ports: no fault of the server."""


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_usable(self) -> bool:
        """Whether nobody closed it, and nothing came that was not asked for."""
        unasked = getattr(self.reader, "_buffer", b"")  # nothing public tells
        return not (self.writer.transport.is_closing() or self.reader.at_eof() or unasked)


def tls_context(authority: Path | None = None) -> ssl.SSLContext:
    """Return what checks the name and certificate of a server: against the system's authorities, or those of a file.

    Raises MissingError where there is no such file, SchemeError where it holds no certificates.
    """
    try:
        return ssl.create_default_context(cafile=None if authority is None else str(authority))
    except FileNotFoundError as error:
        raise MissingError(f"{authority}: no such file with certificates") from error
    except ssl.SSLError as error:
        raise SchemeError(f"{authority}: not a file of certificates in PEM form ({error.reason})") from error


class Client:
    """Sends requests to one address on at most `connections` connections, each used by one request at a time.

    connect_s  until a connection must be there; None: the time of its request

    Make it inside of a running loop, and call `find` first. A request whose connection breaks is not sent again:
    that would hide it.
    """

    def __init__(
        self, address: Address, connections: int, context: ssl.SSLContext | None = None, connect_s: float | None = None
    ) -> None:
        self._address, self._context, self._connect_s = address, context, connect_s
        self._free = asyncio.Semaphore(connections)
        self._idle: list[_Connection] = []
        self._hosts: list[str] = []
        self.opened = 0
        """Connections opened so far."""

    async def find(self) -> None:
        """Look the host up, once: a generator must not measure the name server. EngineError where it has no address."""
        try:
            rows = await asyncio.get_running_loop().getaddrinfo(
                self._address.host, self._address.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise EngineError(f"{self._address.host}: no such host can be found ({error})") from error
        self._hosts = list(dict.fromkeys(str(row[4][0]) for row in rows))

    async def send(
        self,
        wire: bytes,
        take: Take,
        deadline: float,
        begin: Callable[[bool], None],
        head: Head | None = None,
    ) -> int:
        """Send one request and return the status of its answer; the body goes to `take`.

        deadline  on the clock of the loop: for waiting, connecting, sending and reading together
        begin     is called when a connection, or the right to open one, was there; with True if it had to wait
        head      as for `exchange`
        Raises ExchangeError, and nothing else, for all that network and server can do.
        """
        has_begun = False
        try:
            async with asyncio.timeout_at(deadline):
                has_waited = self._free.locked()
                async with self._free:
                    has_begun = True
                    begin(has_waited)
                    return await self._exchange(wire, take, head)
        except TimeoutError as error:
            if has_begun:
                raise ExchangeError("timeout", "no whole answer in time") from error
            raise ExchangeError("not sent", "no connection was free in time") from error

    async def get(self, wire: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send one request and return status and body: for the questions before a run; ExchangeError as for `send`."""
        body = bytearray()
        deadline = asyncio.get_running_loop().time() + timeout_s
        status = await self.send(wire, body.extend, deadline, lambda _: None)
        return status, bytes(body)

    async def close(self) -> None:
        """Close what is open."""
        writers = [connection.writer for connection in self._idle]
        self._idle.clear()
        for writer in writers:
            writer.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        for writer in writers:
            writer.transport.abort()

    async def _exchange(self, wire: bytes, take: Take, head: Head | None) -> int:
        connection = self._kept() or await self._open()
        is_kept = False
        try:
            status, is_kept = await exchange(connection.reader, connection.writer, wire, take, head)
        except ssl.SSLError as error:
            raise ExchangeError("tls", str(error)) from error
        except TimeoutError:  # that of the network, which gave up before we did
            raise
        except OSError as error:
            raise ExchangeError("reset", str(error)) from error
        finally:
            if is_kept:
                self._idle.append(connection)
            else:
                connection.writer.transport.abort()
        return status

    def _kept(self) -> _Connection | None:
        """The connection that rested for the shortest time, which is the least likely to be closed by now."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.writer.transport.abort()
        return None

    async def _open(self) -> _Connection:
        failure = OSError("its host was not looked up")
        for host in tuple(self._hosts):
            try:
                async with asyncio.timeout(self._connect_s):
                    reader, writer = await asyncio.open_connection(
                        host,
                        self._address.port,
                        limit=MAX_HEADER_BYTES,
                        ssl=self._context,
                        server_hostname=self._address.host if self._context else None,
                    )
            except ssl.SSLError as error:
                raise ExchangeError("tls", str(error)) from error
            except OSError as error:
                failure = error
                continue
            self._hosts.sort(key=host.__ne__)  # the address that answers comes first from now on
            self.opened += 1
            return _Connection(reader, writer)
        if failure.errno in OUT_OF_ROOM:
            raise ExchangeError("not sent", str(failure)) from failure
        raise ExchangeError("connect", str(failure)) from failure
