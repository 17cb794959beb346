"""`tersor.report`: one page on one artefact, or on several beside each other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tersor.containers.mixture_rules import FILE_TYPES
from tersor.core.card import Artefact, Card, Seconds, TensorError
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.evaluation import HELD_OUT
from tersor.core.plan import Plan, PlannedTensor, Recipe
from tersor.core.records import plain
from tersor.evaluation.language.comparison import Progress
from tersor.files.atomic import atomic_writer
from tersor.files.gguf import split_paths
from tersor.files.hashing import sha256
from tersor.models import Model
from tersor.pages import AXES, labels_of, limits_of, measured, outcome_of, report_page, unlike
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.inspect import inspect
from tersor.pipeline.language.text import read_text
from tersor.pipeline.steps.cards import load_card, read_card

__all__ = ["Report", "report"]

NO_CARD = "No Card lies beside this file: sizes and formats are read from it, errors of weights are not known."


@dataclass(frozen=True, slots=True)
class Report:
    """A written page: where it lies, the Cards on it, what each is called there, and which were evaluated for it."""

    path: Path
    cards: tuple[Card, ...]
    labels: tuple[str, ...]
    evaluated: tuple[str, ...]

    def to_object(self) -> dict[str, object]:
        """Return the comparison as plain values, ready for JSON: a row an artefact."""
        rows, found = [], [measured(self.cards, axis.metric) for axis in AXES]
        for index, (card, label) in enumerate(zip(self.cards, self.labels, strict=True)):
            metrics = {m.name: plain(m) for each in found if (m := each[index]) is not None}
            row = {"label": label, "model": card.name, "format": card.plan.recipe.format, "bytes": card.nbytes}
            row |= {"bits_per_weight": card.plan.bits_per_weight, "ratio": card.ratio if card.source_bytes else None}
            rows.append({**row, "metrics": metrics, "outcome": outcome_of(limits_of(card))})
        return {"report": self.path.name, "artefacts": rows, "evaluated": list(self.evaluated), "notes": self.notes}

    @property
    def notes(self) -> list[str]:
        """What keeps figures of the artefacts from being compared, a sentence each."""
        return unlike(self.cards, self.labels)


def report(
    artefacts: Sequence[str | Path] | str | Path,
    output: str | Path = "report.html",
    *,
    against: str | Path | Model | None = None,
    data: str | Path | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Write one self-contained HTML page on `artefacts` and return what stands on it.

    artefacts  GGUF files (with or without a Card beside) or Cards (`NAME.card.json`)
    output     the page; an older one is replaced
    against    the original model: where the Cards hold no evaluation on `data`, or without that on any text that all of
               them share, the artefacts are evaluated first, and the result is added to their Card
    data       a UTF-8 text to evaluate on; None: the held-out text of the embedded reference model

    Raises MissingError for files that are not there, FormatError for broken ones and for Cards of other files, and all
    that `evaluate` raises.
    """
    given = [artefacts] if isinstance(artefacts, str | Path) else list(artefacts)
    if not given:
        raise SchemeError("a report needs at least one artefact or Card")
    page = Path(output).expanduser()
    if not page.parent.is_dir():
        raise MissingError(f"{page.parent}: no such folder; create it first, or give another output")
    wanted = None if data is None else sha256(_existing(Path(data).expanduser()))
    sources = [_read(Path(place).expanduser()) for place in given]
    if wanted is None and not set.intersection(*(_evaluated_on(card) for card, _ in sources)):
        wanted = read_text(None).sha256
    cards, evaluated = [], []
    for card, path in sources:
        found = card
        if against is not None and wanted is not None and wanted not in _evaluated_on(card):
            if path is None:
                raise MissingError(f"{card.artefacts[0].name}: not beside its Card, so it cannot be evaluated")
            fresh = evaluate(
                path,
                against=against,
                data=data,
                threads=threads,
                command=_command(path, against, data),
                progress=progress,
            )
            found = read_card(path) or replace(card, evaluations=(fresh,))
            evaluated.append(path.name)
        cards.append(found)
    labels = tuple(labels_of(cards))
    with atomic_writer(page) as file:
        file.write(report_page(cards, labels=labels).encode())
    return Report(page, tuple(cards), labels, tuple(evaluated))


def _command(artefact: Path, against: str | Path | Model, data: str | Path | None) -> str:
    """Return the command that makes the same evaluation, folders cut off."""
    model = against.name if isinstance(against, Model) else str(against)
    source = Path(model).name if Path(model).exists() else model
    words = ["tersor", "evaluate", artefact.name, "--against", source]
    return shlex.join(words if data is None else [*words, "--data", Path(data).name])


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    return path


def _evaluated_on(card: Card) -> set[str]:
    """Return the data of the Card's evaluations; what was measured when it was quantized is no evaluation."""
    return {evaluation.data_sha256 for evaluation in card.evaluations if evaluation.task != HELD_OUT}


def _read(path: Path) -> tuple[Card, Path | None]:
    """Return the Card at or beside `path`, or one made of the bare file; and the artefact, None where it is absent."""
    if path.suffix == ".json":
        card = load_card(_existing(path))
        if not card.artefacts:
            return card, None
        artefact = path.parent / Path(card.artefacts[0].name).name
        return _checked(card, [artefact]) if artefact.is_file() else (card, None)
    parts = split_paths(_existing(path))
    found = read_card(parts[0])
    return (_bare_card(parts[0]), parts[0]) if found is None else _checked(found, parts)


def _checked(card: Card, files: list[Path]) -> tuple[Card, Path]:
    """Return the Card with the first of `files`; FormatError where it does not tell of these very files."""
    told = {row.name: row for row in card.artefacts}
    for file in files:
        row, nbytes = told.get(file.name), file.stat().st_size
        if row is None or row.nbytes != nbytes:  # before it is read whole
            sizes = {row.name: row.nbytes for row in card.artefacts}
            reason = f"it has {nbytes:,} bytes, the Card beside it tells of {sizes}"
        elif (digest := sha256(file)) != row.sha256:
            reason = f"its SHA-256 is {digest[:16]}…, the Card beside it says {row.sha256[:16]}…"
        else:
            continue
        raise FormatError(f"{file}: {reason}; the Card is of another file: remove it, or make the artefact again")
    return card, files[0]


def _bare_card(path: Path) -> Card:
    """Return what a GGUF itself tells, as a Card."""
    found = inspect(path)
    number = found.metadata.get("general.file_type")
    kind = next((row.name for row in FILE_TYPES.values() if row.number == number and not row.pure), path.stem)
    tensors = tuple(
        PlannedTensor(t.name, t.shape, "", t.format, "as found in the file", "", t.nbytes) for t in found.tensors
    )
    return Card(
        name=found.name,
        plan=Plan(found.name, found.architecture, Recipe(kind, "", search=""), tensors),
        sources={},
        source_bytes=0,
        artefacts=tuple(Artefact(n, count, sha256(path.parent / n)) for n, count in found.files.items()),
        errors=tuple(TensorError(tensor.name, None) for tensor in tensors),
        seconds=Seconds(),
        peak_memory_bytes=None,
        versions={},
        platform="",
        command="",
        notes=(NO_CARD,),
    )
