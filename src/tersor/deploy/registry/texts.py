"""Texts that come from outside: names, labels, reasons, times and documents, each with its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tersor.core.errors import SchemeError
from tersor.core.records import plain, to_json_text

__all__ = [
    "checked_name",
    "checked_text",
    "checked_version",
    "document_text",
    "seconds_between",
    "split_label",
    "timestamp",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
MAX_VERSION = 10**9
MAX_TEXT = 2000
MAX_DOCUMENT = 1 << 22
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def checked_name(name: str, what: str) -> str:
    """Return `name` if it can be one; SchemeError says what a name is.

    >>> checked_name("chat-q4_k_m", "an artefact")
    'chat-q4_k_m'
    """
    if not NAME.fullmatch(name):
        raise SchemeError(
            f"{name!r:.150} cannot name {what}: 1 to 128 ASCII letters, digits, '.', '_' and '-' are needed, a letter "
            "or digit first"
        )
    return name


def split_label(label: str) -> tuple[str, int | None]:
    """Return name and version of NAME or NAME:VERSION; SchemeError for anything else.

    >>> split_label("chat:3"), split_label("chat")
    (('chat', 3), ('chat', None))
    """
    name, colon, version = label.partition(":")
    checked_name(name, "an artefact")
    return name, checked_version(version) if colon else None


def checked_version(version: str) -> int:
    """Return the number that `version` spells; SchemeError where it is none."""
    if not re.fullmatch(r"[1-9][0-9]{0,9}", version, re.ASCII) or int(version) > MAX_VERSION:
        raise SchemeError(f"{version!r:.60} is no version: a whole number from 1 on")
    return int(version)


def checked_text(text: str, what: str) -> str:
    """Return `text`, stripped, if it can be shown on one line; SchemeError where it is empty, long or odd."""
    stripped = text.strip()
    if not stripped or len(stripped) > MAX_TEXT or not stripped.isprintable():
        raise SchemeError(f"{what}: 1 to {MAX_TEXT} printable characters on one line are needed, got {text!r:.100}")
    return stripped


def document_text(document: Mapping[str, Any], what: str) -> str:
    """Return `document` as JSON; SchemeError where it holds what JSON cannot, or more than 4 MiB."""
    try:
        text = to_json_text(plain(document))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemeError(f"{what}: JSON cannot hold it ({error})") from error
    if len(text) > MAX_DOCUMENT:
        raise SchemeError(f"{what}: {len(text):,} characters, at most {MAX_DOCUMENT:,} are kept")
    return text


def timestamp(moment: datetime) -> str:
    """Return `moment` in UTC to the microsecond; SchemeError where it does not know its time zone.

    >>> timestamp(datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2027-01-02T03:04:05.000000Z'
    """
    if moment.tzinfo is None:
        raise SchemeError(f"{moment}: the clock of a registry must know its time zone: datetime.now(UTC)")
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds from one timestamp to another, negative where the clock was set back.

    >>> seconds_between("2027-01-02T03:04:05.000000Z", "2027-01-02T03:04:06.500000Z")
    1.5
    """
    return (datetime.strptime(later, TIME_FORMAT) - datetime.strptime(earlier, TIME_FORMAT)).total_seconds()
