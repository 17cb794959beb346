"""What a file is known by."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["sha256", "written_name"]

_SURROGATES = re.compile("[\ud800-\udfff]")


def written_name(name: str) -> str:
    """Return the name of a file or folder as it is written into others: what is no Unicode in it becomes U+FFFD.

    Bytes of a name that are no UTF-8 reach Python as lone surrogates, which no encoding of text holds.
    """
    return _SURROGATES.sub("\ufffd", name)


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, in hexadecimal; read in pieces, never held whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
