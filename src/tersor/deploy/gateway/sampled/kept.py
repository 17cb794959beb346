"""Recent requests, kept for recalibration where a deployment asks for it: what users wrote, so as little as will do.

One SQLite file beside the record, readable by its owner alone, bounded in requests and bytes of each model. Of a
request stay its prompt or its tensors, never who asked. So few of each five seconds are kept that the file spans an
hour or more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tersor.core.errors import FormatError, MissingError

__all__ = ["Keeper", "Kept", "arrays_of", "kept_path", "read_kept", "texts_of"]

Kept: TypeAlias = tuple[dict[str, Any], bytes]
"""A request and its payload."""
APPLICATION = 0x74727371
SPANS = 720
"""In which an hour is cut; of each as many requests are kept."""
MOST_BYTES, MOST_REQUEST_BYTES = 64 << 20, 1 << 20
"""Of one model, and of one request."""
WORDS = ("prompt", "messages", "input")
SCHEMA = """CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, model TEXT NOT NULL, at REAL NOT NULL,
    request TEXT NOT NULL, payload BLOB NOT NULL)"""


def kept_path(record: str | Path) -> Path:
    """Return where requests are kept, by the path of the record."""
    return Path(record).with_suffix(".requests.db")


@dataclass(eq=False)
class Keeper:
    """Takes requests, and writes those of some seconds at once.

    most  requests of each model that stay
    """

    path: Path
    most: int
    _span: dict[str, tuple[int, list[Kept]]] = field(default_factory=dict, init=False)

    def take(self, model: str, request: Mapping[str, Any], payload: bytes) -> None:
        """Keep a request, if it is in the sample of these seconds."""
        seen, rows = self._span.get(model, (0, []))
        self._span[model] = seen + 1, rows
        if len(payload) > MOST_REQUEST_BYTES:
            return
        room = max(1, self.most // SPANS)
        if len(rows) < room:
            rows.append(_bare(request, payload))
        elif (place := int(random.random() * (seen + 1))) < room:  # noqa: S311  # a sample, no secret
            rows[place] = _bare(request, payload)

    def save(self, moment: float) -> None:
        """Write down these seconds, and drop the oldest of what is too much; Unix seconds `moment`."""
        span, self._span = self._span, {}
        if not span:
            return
        with contextlib.closing(_opened(self.path)) as connection, connection:
            for model, (_, rows) in span.items():
                connection.executemany(
                    "INSERT INTO requests (model, at, request, payload) VALUES (?, ?, ?, ?)",
                    [(model, moment, json.dumps(request), payload) for request, payload in rows],
                )
                connection.execute(
                    """DELETE FROM requests WHERE model = ?1 AND id <= (SELECT max(id) FROM (SELECT id,
                        row_number() OVER (ORDER BY id DESC) AS place,
                        sum(length(payload) + length(request)) OVER (ORDER BY id DESC) AS bytes
                        FROM requests WHERE model = ?1) WHERE place > ?2 OR bytes > ?3)""",
                    (model, self.most, MOST_BYTES),
                )


def read_kept(path: Path, model: str) -> list[Kept]:
    """Return the requests of a model, the oldest first; MissingError without any, FormatError for another file."""
    if not path.is_file():
        raise MissingError(f"{path}: no requests are kept; let the gateway keep some: `monitor: {{keep: 2000}}`")
    try:
        with contextlib.closing(_opened(path)) as connection:
            rows = connection.execute("SELECT request, payload FROM requests WHERE model = ? ORDER BY id", (model,))
            return [(dict(json.loads(request)), bytes(payload)) for request, payload in rows]
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise FormatError(f"{path}: no kept requests ({error})") from error


def arrays_of(kept: Sequence[Kept]) -> dict[str, np.ndarray]:
    """Return the inputs of a net, rows one after the other; requests of another form than the newest are left out."""
    found: dict[str, list[np.ndarray]] = {}
    form = None
    for request, payload in reversed(kept):
        arrays, at = {}, 0
        for one in request.get("inputs", ()):
            array = np.frombuffer(payload, np.dtype(one["dtype"]), int(np.prod(one["shape"])), at)
            arrays[str(one["name"])] = array.reshape(one["shape"])
            at += array.nbytes
        this = {name: (one.dtype, one.shape[1:]) for name, one in arrays.items() if one.ndim}
        form = form or this
        if this == form and len(this) == len(arrays) and len({len(one) for one in arrays.values()}) == 1:
            for name, one in arrays.items():
                found.setdefault(name, []).insert(0, one)
    return {name: np.concatenate(rows) for name, rows in found.items()}


def texts_of(kept: Sequence[Kept]) -> list[str]:
    """Return what was asked of a language model; lists of tokens are left out."""
    return [text for request, _ in kept if (text := "\n".join(_words(request.get("body", {}))).strip())]


def _words(body: Mapping[str, Any]) -> Iterator[str]:
    for name in WORDS:
        given = body.get(name)
        for one in given if isinstance(given, list) else [given]:
            word = one.get("content") if isinstance(one, dict) else one
            if isinstance(word, str):
                yield word


def _bare(request: Mapping[str, Any], payload: bytes) -> Kept:
    """A request without all that does not say what was asked."""
    if "inputs" in request:
        return {"inputs": request["inputs"]}, payload
    body = request.get("body", {})
    return {"body": {name: body[name] for name in WORDS if name in body}}, b""


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file; it is its owner's from the beginning, and so are those that SQLite lays beside it."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, stat.S_IRUSR | stat.S_IWUSR))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    connection = sqlite3.connect(path, timeout=5)
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] not in (0, APPLICATION):
            raise FormatError(f"{path}: an SQLite file of another program")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
