"""Who gets a processor first: an engine whose answers nobody waits for computes where nobody else wants to.

On Linux that is a class of threads, SCHED_IDLE: whatever else wakes takes the processor from them at once. Threads hand
it to those that they begin. It needs the right to leave that class again, for the engine is to serve later: without
(CAP_SYS_NICE, or a limit RLIMIT_NICE of 20), and on other systems, all engines are treated alike.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import cache
from pathlib import Path

__all__ = ["can_return", "put_last"]

MOST_PASSES = 5


@cache
def can_return() -> bool:
    """Whether what was put last may be taken back: a thread of this process has tried it."""
    if not hasattr(os, "SCHED_IDLE"):
        return False
    found: list[bool] = []

    def tried() -> None:
        policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, policy, param)
            found.append(True)

    thread = threading.Thread(target=tried)
    thread.start()
    thread.join()
    return bool(found)


def put_last(pid: int, *, is_last: bool) -> None:
    """Let a process compute only where nobody else does, or as this process does again; nothing where it is gone.

    Where `can_return` says that it may.
    """
    if is_last:
        policy, param = os.SCHED_IDLE, os.sched_param(0)
    else:
        policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    for _ in range(MOST_PASSES):  # a thread that was begun meanwhile has the class of the one that began it
        threads = _threads(pid)
        with contextlib.suppress(ProcessLookupError):
            wrong = [thread for thread in threads if os.sched_getscheduler(thread) != policy]
            for thread in wrong:
                os.sched_setscheduler(thread, policy, param)
            if not wrong:
                return


def _threads(pid: int) -> list[int]:
    """The threads of a process."""
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
