"""A gateway in a child process, which is gone at the end whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import EngineError

__all__ = ["Child", "serving"]

END_S = 40.0
"""For what it is answering; longer than `drain_s` of a deployment."""
TAIL = 400


@dataclass(frozen=True, slots=True)
class Child:
    """A gateway that answers at `address`."""

    process: asyncio.subprocess.Process
    address: str

    def reload(self) -> None:
        """Have it read its deployment anew."""
        self.process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def serving(deployment: Path, log: Path) -> AsyncIterator[Child]:
    """Run `tersor serve` on a free port, with what it says on stderr in `log`; EngineError where it does not start."""
    with log.open("ab") as told:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "tersor", "serve", str(deployment), "--port", "0",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=told,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C at the terminal is ours: it still has to drain then
        )  # fmt: skip
    try:
        assert process.stdout is not None, "it was asked for"
        line = (await process.stdout.readline()).decode(errors="replace")
        if " on http" not in line:
            await process.wait()
            words = log.read_text(encoding="utf-8", errors="replace").strip()[-TAIL:]
            raise EngineError(f"the gateway ended before it answered: {words or 'it said nothing'}")
        yield Child(process, line.split()[-1])
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to end, and make it end."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # its engines end with the channel to it
        raise
