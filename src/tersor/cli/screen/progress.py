"""A progress bar on stderr: for people at a terminal, and only when there is something to wait for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["PATIENCE_S", "Bar", "progress_bar"]

PATIENCE_S = 2.0
"""How long a run goes on in silence."""

Unit = Literal["bytes", "weights", "tokens", "items"]
"""What is counted; only bytes are shown as amounts."""


class Bar:
    """Takes the calls of a pipeline and draws them once PATIENCE_S have passed; a call costs microseconds."""

    def __init__(self, console: Console, unit: Unit) -> None:
        self._console, self._unit = console, unit
        self._began = perf_counter()
        self._drawn: Progress | None = None

    def __call__(self, tensor: str, done: int, total: int) -> None:
        """`done` of `total` units are there, the last of them of `tensor`."""
        if self._drawn is None:
            if not self._console.is_terminal or perf_counter() - self._began < PATIENCE_S:
                return
            amount: ProgressColumn = TextColumn("{task.percentage:.0f} %")
            if self._unit == "bytes":
                amount = DownloadColumn(binary_units=True)
            columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
            self._drawn = Progress(*columns, console=self._console, transient=True)
            self._drawn.start()
            self._task = self._drawn.add_task(tensor, total=total)
        self._drawn.update(self._task, description=tensor, completed=done, total=total)

    def write(self, text: str) -> None:
        """Write a result to stdout now, above the bar."""
        if self._drawn is not None:
            self._drawn.stop()  # while it is drawn, stdout is its own
        sys.stdout.write(text)
        sys.stdout.flush()
        if self._drawn is not None:
            self._drawn.start()

    def close(self) -> None:
        """Wipe the bar."""
        if self._drawn is not None:
            self._drawn.stop()


@contextmanager
def progress_bar(unit: Unit = "bytes") -> Iterator[Bar]:
    """Yield a bar on stderr and wipe it at the end, whatever the end."""
    bar = Bar(Console(file=sys.stderr), unit)
    try:
        yield bar
    finally:
        bar.close()
