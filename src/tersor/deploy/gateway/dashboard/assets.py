"""Style and scripts: our own, and vendored ones, under names that hold their hash, so that browsers may keep them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["Asset", "assets", "place"]

KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
OWN = ("dashboard.css", "dashboard.js")
VENDORED = ("htmx.min.js", "htmx-sse.min.js", "uplot.min.js", "uplot.min.css")
"""From the npm registry, unchanged; docs/decisions/0017-dashboard.md says which versions, and how to renew them."""
PREFIX = "/dashboard/static/"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    kind: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return all files by the name under which they are asked for, such as `htmx.min-0123456789ab.js`."""
    return {_hashed(name): Asset(_content(name), KINDS[name.rpartition(".")[2]]) for name in (*OWN, *VENDORED)}


@cache
def place(name: str) -> str:
    """Return the path of a file on the gateway."""
    return PREFIX + _hashed(name)


def _hashed(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{stem}-{hashlib.sha256(_content(name)).hexdigest()[:12]}.{kind}"


@cache
def _content(name: str) -> bytes:
    content = (resources.files(__package__) / "static" / name).read_bytes()
    if name == "dashboard.css":  # what reports look like, and what is more here
        return (resources.files("tersor.pages") / "style.css").read_bytes() + content
    return content
