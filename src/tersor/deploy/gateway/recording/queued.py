"""Refreshes that wait until a rollout has ended: a small file for each model, which outlives whoever wrote it.

It lies in the folder that a refresh of the model works in, and goes with it when all is done. A refresh that was killed
leaves it there: whoever serves then goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import FormatError, MissingError
from tersor.core.records import from_json_text, plain, read_record, read_text, to_json_text
from tersor.files.atomic import atomic_writer

__all__ = ["Queued", "drop_queued", "put_queued", "read_queued", "waiting", "work_folder"]

SCHEMA = "tersor.queued-refresh/1"
FILE = "queued.json"
MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Queued:
    """A refresh that waits.

    candidate    whose rollout it waits for
    who, at      asked for it, and when
    calibration  the original data that he named, as a whole path; empty: what the deployment has
    """

    candidate: str
    who: str
    at: str
    calibration: str = ""
    schema: str = SCHEMA


def work_folder(record: str | Path, model: str) -> Path:
    """Return where a refresh of a model keeps what it has so far, beside the record of its deployment."""
    return Path(record).with_suffix(".refresh") / model


def put_queued(record: str | Path, model: str, entry: Queued) -> None:
    """Have it wait, in place of one that waits already; MissingError where that cannot be written."""
    folder = work_folder(record, model)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_writer(folder / FILE) as file:
            file.write(to_json_text(plain(entry)).encode())
    except OSError as error:
        raise MissingError(f"{folder / FILE}: cannot be written ({error.strerror}), so nothing waits") from error


def read_queued(record: str | Path, model: str) -> Queued | None:
    """Return what waits; None where nothing does. FormatError where the file is none of ours."""
    path = work_folder(record, model) / FILE
    if not path.is_file():
        return None
    text = read_text(path, most=MOST_BYTES, too_large="no refresh that waits")
    entry = read_record(Queued, from_json_text(text, str(path)), str(path))
    if entry.schema != SCHEMA:
        raise FormatError(f"{path}: not of {SCHEMA}; remove it, and ask for the refresh again")
    return entry


def drop_queued(record: str | Path, model: str) -> None:
    """Let nothing wait any more."""
    (work_folder(record, model) / FILE).unlink(missing_ok=True)


def waiting(record: str | Path) -> tuple[str, ...]:
    """Return the models for which something waits, in order."""
    return tuple(sorted(path.parent.name for path in work_folder(record, "").glob(f"*/{FILE}")))
