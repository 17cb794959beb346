"""Processes that answer, each on the core it is told, gone at the end whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVER_CORE, CLIENT_CORE = 0, 1
END_S = 40


@dataclass(frozen=True)
class Live:
    """A server that answers at `url`."""

    process: subprocess.Popen[str]
    url: str

    def children(self) -> list[int]:
        """Process ids of its engines."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def engine(self, words: str) -> int:
        """Process id of the engine whose command line holds `words`; LookupError while there is none."""
        for pid in self.children():
            with contextlib.suppress(OSError):
                if words in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        raise LookupError(words)

    def processor_s(self) -> float:
        """Seconds of processor that it and its engines have taken."""
        ticks = 0
        for pid in (self.process.pid, *self.children()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def pin(core: int) -> Callable[[], None]:
    """Return what puts the calling process on one core; on all where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = {cores[core % len(cores)]}
    return lambda: os.sched_setaffinity(0, wanted)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    core: int | None = SERVER_CORE,
    is_loud: bool = False,
) -> Iterator[Live]:
    """Run a program that prints a line ending in its address.

    core     of it and its children; None: any
    is_loud  what it says on stderr is dropped
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if is_loud else None,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=None if core is None else pin(core),  # noqa: PLW1509 (there are no threads here yet)
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "http://" in line:
                yield Live(process, line.split()[-1])
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended before it answered")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def gateway(
    text: str, folder: Path, *, core: int | None = SERVER_CORE, command: Sequence[str] = ("-m", "tersor", "serve")
) -> Iterator[Live]:
    """Run `tersor serve`, or another command, on the deployment `text`, whose paths begin in `folder`."""
    path = folder / f"deploy-{abs(hash(text)):x}.yaml"
    path.write_text(text, encoding="utf-8")
    with running([*command, str(path), "--port", "0"], core=core) as live:
        yield live


def gone(pids: Sequence[int]) -> bool:
    """Whether none of the processes is there any more."""
    return not any(Path(f"/proc/{pid}/stat").exists() for pid in pids)


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition and return the seconds that it took; infinite where it did not come in time."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        if condition():
            return time.perf_counter() - began
        time.sleep(0.01)
    return float("inf")
