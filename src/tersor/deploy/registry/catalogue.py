"""Which artefacts there are, where they lie, and whether they still are what was registered."""

from __future__ import annotations

import json
from pathlib import Path

from tersor.core.card import Card
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.records import plain
from tersor.deploy.registry.ledger import Ledger, label_of
from tersor.deploy.registry.manifest import (
    Contents,
    confined,
    differences,
    kind_of,
    manifest_digest,
    manifest_of,
    read_card,
)
from tersor.deploy.registry.rows import Difference, RegisteredArtefact
from tersor.deploy.registry.texts import checked_name, checked_text, split_label

__all__ = ["add", "all_artefacts", "card_of", "differences_of", "find", "place_of", "registered"]

SHOWN = 20
FULL_BITS = 16.0

_SELECT = f"""SELECT a.id, a.name, a.version, a.kind, a.path, a.is_absolute, a.files, a.nbytes, a.sha256,
    {label_of("b", "baseline")}, a.added, a.who FROM artefacts a LEFT JOIN artefacts b ON b.id = a.baseline"""  # noqa: S608  # names from our own code


def add(
    ledger: Ledger, name: str, path: Path, *, who: str, kind: str | None, baseline: str | None, is_absolute: bool
) -> RegisteredArtefact:
    """Hash the artefact at `path` and add it as the next version of `name`; unchanged, it stays the newest one."""
    checked_name(name, "an artefact")
    who = checked_text(who, "who")
    compared = None if baseline is None else find(ledger, baseline)
    if compared is not None and compared.baseline is not None:
        raise SchemeError(
            f"{compared.label} has a baseline itself, {compared.baseline}; a baseline is of full precision"
        )
    folder = ledger.database.folder
    place = _absolute(path)
    stored = str(place) if is_absolute else _below(folder, place)
    if not is_absolute:
        confined(folder, stored, is_absolute=False)
    chosen = kind_of(place, kind)
    files = manifest_of(place, chosen, None if is_absolute else folder)
    card, digest = read_card(place, files), manifest_digest(files)
    if compared is None and card is not None:
        _check_full(place, Card.from_json(card))
    with ledger.database.writing(is_decision=True):
        newest = _newest(ledger, name)
        facts = (stored, chosen, digest, compared.label if compared else None)
        if newest is not None and (newest.path, newest.kind, newest.sha256, newest.baseline) == facts:
            return newest
        version = newest.version + 1 if newest else 1
        added = ledger.log("add", f"{name}:{version}", who, {"path": stored, "sha256": digest})
        ledger.database.insert(
            "artefacts", name=name, version=version, kind=chosen, path=stored, is_absolute=int(is_absolute),
            files=json.dumps(plain(files)), nbytes=sum(file.nbytes for file in files), sha256=digest, card=card,
            baseline=compared.id if compared else None, added=added, who=who,
        )  # fmt: skip
        return find(ledger, name)


def _check_full(place: Path, card: Card) -> None:
    """Refuse what its Card says is quantized: without a baseline it would serve unjudged."""
    bits = card.plan.bits_per_weight
    if bits < FULL_BITS:
        raise SchemeError(
            f"{place.name} has {bits:.3g} bits per weight by its Card: name what it is to be compared with, "
            "the full-precision artefact, as its baseline"
        )


def find(ledger: Ledger, label: str, version: int | None = None) -> RegisteredArtefact:
    """Return one artefact, the newest of its name where no version is given; MissingError names others."""
    name, number = split_label(label)
    if number is not None and version not in (None, number):
        raise SchemeError(f"{label} or version {version}: one of them")
    number = version if number is None else number
    if number is None:
        row = _newest(ledger, name)
    else:
        rows = _artefacts(ledger, "WHERE a.name = ? AND a.version = ?", name, number)
        row = rows[0] if rows else None
    if row is None:
        rows_there = ledger.database.rows("SELECT name, version FROM artefacts ORDER BY id DESC LIMIT ?", SHOWN)
        labels = ", ".join(f"{there['name']}:{there['version']}" for there in rows_there)
        wanted = name if number is None else f"{name}:{number}"
        raise MissingError(f"{ledger.database.folder}: no artefact {wanted}; there are {labels or 'none at all'}")
    return row


def all_artefacts(ledger: Ledger) -> tuple[RegisteredArtefact, ...]:
    """Return every version of every artefact, in the order in which they were added."""
    return _artefacts(ledger, "ORDER BY a.id")


def registered(ledger: Ledger, contents: Contents) -> RegisteredArtefact | None:
    """Return the artefact whose files have these contents, under whatever names."""
    found = [row for row in all_artefacts(ledger) if tuple(sorted(file.sha256 for file in row.files)) == contents]
    # To register a quantized model again without a baseline must not spare it the gate.
    return max(found, key=lambda row: (row.baseline is not None, row.id), default=None)


def card_of(ledger: Ledger, row: RegisteredArtefact) -> Card | None:
    """Return the Card that lay beside an artefact when it was added."""
    (found,) = ledger.database.rows("SELECT card FROM artefacts WHERE id = ?", row.id)
    return None if found["card"] is None else Card.from_json(str(found["card"]), place=f"{row.label}: card")


def place_of(ledger: Ledger, row: RegisteredArtefact) -> Path:
    """Return where an artefact lies; SchemeError where that is outside the folder, MissingError where nothing is."""
    return confined(ledger.database.folder, row.path, is_absolute=bool(row.is_absolute))


def differences_of(ledger: Ledger, row: RegisteredArtefact, *, is_hashed: bool) -> tuple[Difference, ...]:
    """Return every file that is not as it was registered; contents are read where `is_hashed`."""
    try:
        place = place_of(ledger, row)
    except (MissingError, SchemeError) as error:
        return (Difference(row.path, str(error)),)
    root = None if row.is_absolute else ledger.database.folder
    return differences(place, row.kind, row.files, root, is_hashed=is_hashed)


def _newest(ledger: Ledger, name: str) -> RegisteredArtefact | None:
    rows = _artefacts(ledger, "WHERE a.name = ? ORDER BY a.version DESC LIMIT 1", name)
    return rows[0] if rows else None


def _artefacts(ledger: Ledger, rest: str, *values: str | int) -> tuple[RegisteredArtefact, ...]:
    rows = ledger.found(RegisteredArtefact, f"{_SELECT} {rest}", *values, document="files")
    for row in rows:
        if manifest_digest(row.files) != row.sha256:
            raise FormatError(f"{ledger.database.folder}: {row.label}: its manifest was altered; go back to a copy")
    return rows


def _absolute(path: Path) -> Path:
    """Return `path` from the root on, its folder without links, its own last link kept."""
    try:
        return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingError(f"{str(path)!r:.200}: cannot be followed ({error})") from error


def _below(folder: Path, place: Path) -> str:
    root = folder.resolve()
    if not place.is_relative_to(root):
        raise SchemeError(
            f"{place} lies outside the folder of the registry; copy it into {folder}, or register it as absolute"
        )
    return place.relative_to(root).as_posix()
