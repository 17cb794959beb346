"""The Card that lies beside an artefact: reading it, writing it in its three forms, adding what was measured later."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tersor.core.card import Card, card_path
from tersor.core.evaluation import Benchmark, Evaluation, LayerError
from tersor.core.records import read_text
from tersor.files.atomic import AtomicSet, atomic_set
from tersor.files.hashing import sha256
from tersor.pages import report_page

__all__ = ["add", "carded", "load_card", "read_card", "save_card"]

MAX_BYTES = 1 << 26
"""A Card of ten thousand tensors takes four million bytes."""
_log = logging.getLogger(__name__)


def carded(artefact: Path) -> Path:
    """Return beside what the Card of an artefact lies: a file itself; in a folder, a file of its name."""
    return artefact / artefact.resolve().name if artefact.is_dir() else artefact


def read_card(artefact: Path) -> Card | None:
    """Return the Card that lies beside `artefact`, None where there is none; FormatError if it is broken."""
    path = card_path(artefact, "json")
    return load_card(path) if path.is_file() else None


def load_card(path: Path) -> Card:
    """Read a `.card.json`; MissingError where it cannot be read, FormatError where it is no Card."""
    return Card.from_json(read_text(path, most=MAX_BYTES, too_large="no Card is that large"), place=str(path))


def save_card(card: Card, artefact: Path) -> tuple[Path, ...]:
    """Write the Card beside `artefact`, all its forms or none, and return where they lie."""
    with atomic_set(artefact.parent) as files:
        return _write(card, artefact, files)


def add(
    artefact: Path,
    *,
    evaluation: Evaluation | None = None,
    benchmark: Benchmark | None = None,
    layers: tuple[LayerError, ...] | None = None,
) -> Card | None:
    """Put what was measured into the Card beside `artefact` and return it; None where no Card of it lies there.

    A Card of another file, by its SHA-256, stays as it is, with a warning: figures of both would stand in it as one's.
    A later evaluation of the same task on the same data against the same reference replaces the earlier one; so does a
    benchmark of the same engine beside the same artefact with the same settings; `layers` replace those that are there.
    """
    known = read_card(artefact)
    if known is None or not _is_of(known, artefact, evaluation or benchmark):
        return None
    with atomic_set(artefact.parent) as files:
        # Opening is locking: two runs that add to one Card at the same time do not lose what the other found.
        document = files.open(card_path(artefact, "json").name)
        card = load_card(card_path(artefact, "json"))
        if evaluation is not None:
            others = (other for other in card.evaluations if _question(other) != _question(evaluation))
            card = replace(card, evaluations=(*others, evaluation))
        if benchmark is not None:
            rest = (other for other in card.benchmarks if _race(other) != _race(benchmark))
            card = replace(card, benchmarks=(*rest, benchmark))
        if layers is not None:
            card = replace(card, layers=layers)
        document.write(card.to_json().encode())
        _write_pages(card, artefact, files)
    return card


def _is_of(card: Card, artefact: Path, part: Evaluation | Benchmark | None) -> bool:
    """Whether the Card is of the file that was measured, whose SHA-256 `part` tells where it was made from a file."""
    digest = (part.subject_sha256 if part is not None else "") or sha256(artefact)
    if digest in {row.sha256 for row in card.artefacts}:
        return True
    _log.warning(
        "%s is of another file than %s (SHA-256 %.16s…): what was measured is not added to it; remove the Card, or "
        "make the artefact again",
        *(card_path(artefact, "json"), artefact.name, digest),
    )
    return False


def _question(evaluation: Evaluation) -> tuple[str, ...]:
    return evaluation.task, evaluation.reference, evaluation.data, evaluation.data_sha256


def _race(benchmark: Benchmark) -> tuple[object, ...]:
    return benchmark.engine, benchmark.against, dict(benchmark.settings)


def _write(card: Card, artefact: Path, files: AtomicSet) -> tuple[Path, ...]:
    path = card_path(artefact, "json")
    files.open(path.name).write(card.to_json().encode())
    return (path, *_write_pages(card, artefact, files))


def _write_pages(card: Card, artefact: Path, files: AtomicSet) -> tuple[Path, ...]:
    pages = {"md": card.to_markdown(), "html": report_page([card])}
    for suffix, text in pages.items():
        files.open(card_path(artefact, suffix).name).write(text.encode("utf-8", "replace"))
    return tuple(card_path(artefact, suffix) for suffix in pages)
