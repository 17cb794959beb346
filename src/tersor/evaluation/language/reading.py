"""A file of text read whole, within bounds."""

from __future__ import annotations

import os
from pathlib import Path

from tersor.core.errors import FormatError, MissingError

__all__ = ["MAX_BYTES", "read_whole"]

MAX_BYTES = 1 << 28


def read_whole(path: Path) -> bytes:
    """Return the bytes of `path`, of a pipe too; MissingError if it cannot be read, FormatError beyond MAX_BYTES."""
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size or MAX_BYTES  # reading takes memory for all that is asked for
            content = file.read(min(length, MAX_BYTES) + 1)
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MAX_BYTES:
        raise FormatError(f"{path}: more than {MAX_BYTES >> 20} MiB; cut it, no estimate needs that much")
    return content
