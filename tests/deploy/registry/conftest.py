"""A folder of small artefacts, and a clock that can be set."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tersor.deploy.registry.registry import Registry

NAMES = ("full", "q4", "q8")
START = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """Tells what it was set to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files that begin like a GGUF."""
    path = tmp_path / "registry"
    path.mkdir()
    for name in NAMES:
        (path / f"{name}.gguf").write_bytes(b"GGUF" + name.encode() * 100)
    return path


@pytest.fixture
def registry(folder: Path, clock: Clock) -> Iterator[Registry]:
    """A registry of `full`, and of `q4` and `q8`, which are compared with it."""
    with Registry.open(folder, mode="create", clock=clock, wait_s=0.2) as opened:
        opened.add_artefact("full", folder / "full.gguf", who="ann")
        for name in ("q4", "q8"):
            opened.add_artefact(name, folder / f"{name}.gguf", who="ann", baseline="full")
        yield opened
