"""From groups that rounding does not explain to sentences: what stands there, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.evaluation.checks.tensors import Pair, head_counts, mistake, relative_error
from tersor.evaluation.layers.rounding import Suspect
from tersor.models import Model, ModelTensor

__all__ = ["findings_of"]

WHOLE = 0.6
"""Share of the groups of a row (or column) that must be at fault for all of it to be called so."""
SOME = 0.1
"""The same for a row that turns out to be another one: coarse formats show but a part of what is wrong."""
MOST = 0.4
"""Share of all groups at fault below which a tensor is not misplaced as a whole."""
MATCHED_ROWS = 1024
MATCHED_COLUMNS = 512
MATCHED_WEIGHTS = 1 << 24
SHOWN = 8
_SLICE = 1 << 22

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows (or columns) `first` … `last` of the artefact hold those of the source from `origin` on; -1: of nowhere."""

    first: int
    last: int
    origin: int


def findings_of(
    pair: Pair, suspect: Suspect, artefact: Model, wanted: Mapping[str, ModelTensor], error: float
) -> tuple[str, ...]:
    """Return one sentence for each fault, the widest first, at most SHOWN and the number of the rest.

    suspect  the groups at fault
    wanted   all tensors of the source by name, to find out where a displaced one belongs
    error    relative error of the whole tensor
    """
    share = len(suspect.rows) * suspect.width / (pair.found.rows * pair.found.columns)
    if error > pair.bound and not 0 < share < MOST and (name := mistake(pair, artefact, wanted)):
        return (name,)
    if not len(suspect.rows):
        moved = [*_moved_rows(pair, artefact)] if error > pair.bound and pair.found.rows > 1 else []
        if moved:
            return (*moved[:SHOWN], *([f"and {len(moved) - SHOWN} more places"] if len(moved) > SHOWN else []))
        beyond = f"differs by {error:.3g} of its size; rounding to {_kind(pair)} explains at most {pair.bound:g}"
        return (beyond,) if error > pair.bound else ()
    sentences = [*_of_lines(pair, suspect, artefact)]
    if len(sentences) > SHOWN:
        sentences = [*sentences[:SHOWN], f"and {len(sentences) - SHOWN} more places"]
    return tuple(sentences)


def _of_lines(pair: Pair, suspect: Suspect, artefact: Model) -> Iterator[str]:
    """Whole columns first, if most rows show them, then whole rows, then single groups."""
    rows, columns = pair.found.rows, pair.found.columns
    across = columns // suspect.width
    per_row = np.bincount(suspect.rows, minlength=rows)
    per_column = np.bincount(suspect.columns // suspect.width, minlength=across)
    whole_rows = _whole_rows(pair, per_row / across)
    whole_columns = np.empty(0, np.int64)
    if rows > 3 and len(whole_rows) < WHOLE * rows:
        whole_columns = np.flatnonzero(per_column > WHOLE * rows)
        yield from _column_faults(pair, whole_columns, suspect.width, artefact)
    yield from _row_faults(pair, whole_rows, artefact)
    left = ~np.isin(suspect.rows, whole_rows) & ~np.isin(suspect.columns // suspect.width, whole_columns)
    yield from _group_faults(pair, suspect.rows[left], suspect.columns[left], suspect.width)


def _whole_rows(pair: Pair, shares: npt.NDArray[np.float64]) -> Indices:
    """Rows at fault all over, and rows at fault here and there that another row of the source explains."""
    whole = shares > WHOLE
    some = np.flatnonzero((shares > SOME) & ~whole)[:MATCHED_ROWS]
    if len(some):
        origins = _origins(_rows(pair, some), pair)
        whole[some] = (origins >= 0) & (origins != some)
    return np.flatnonzero(whole)


def _rows(pair: Pair, rows: Indices) -> Float32:
    return _finite(np.concatenate([pair.found.read(int(row), int(row) + 1) for row in rows]))


def _moved_rows(pair: Pair, artefact: Model) -> Iterator[str]:
    """Where all of a tensor is wrong, yet its rows are the source's in another order."""
    size = _head_rows(pair, artefact)
    rows = np.arange(min(pair.found.rows, MATCHED_ROWS))
    for run in _runs(rows, _origins(_finite(pair.found.read(0, len(rows))), pair)):
        if run.origin not in (-1, run.first):
            yield _sentence("row", run, size, pair, None)


def _head_rows(pair: Pair, artefact: Model) -> int:
    """Rows of a head, 0 where rows are no heads."""
    if pair.found.kind not in ("attn_q", "attn_k", "attn_v"):
        return 0
    counts = head_counts(artefact, is_key=pair.found.kind != "attn_q")
    heads = next((count for count in counts if pair.found.rows % count == 0), 0)
    return pair.found.rows // heads if heads else 0


def _row_faults(pair: Pair, rows: Indices, artefact: Model) -> Iterator[str]:
    size = _head_rows(pair, artefact)
    chosen = rows[:MATCHED_ROWS]
    if not len(chosen):
        return
    found = _rows(pair, chosen)
    for run in _runs(chosen, _origins(found, pair)):
        yield _sentence("row", run, size, pair, found[np.searchsorted(chosen, run.first) :])
    if len(rows) > len(chosen):
        yield f"and {len(rows) - len(chosen)} more rows up to row {rows[-1]}"


def _origins(found: Float32, pair: Pair) -> Indices:
    """The row of the source that each of these rows, [n, columns], holds; -1 where none is alike."""
    best, origin = np.full(len(found), _alike(pair.found.columns)), np.full(len(found), -1, np.int64)
    directions = _directions(found)
    step = max(1, _SLICE // pair.found.columns)
    for start in range(0, pair.found.rows, step):
        wanted = _directions(pair.wanted.read(start, min(start + step, pair.found.rows)))
        likeness = directions @ wanted.T
        place = likeness.argmax(axis=1)
        value = likeness[np.arange(len(found)), place]
        better = value > best
        best[better], origin[better] = value[better], place[better] + start
    return origin


def _column_faults(pair: Pair, groups: Indices, width: int, artefact: Model) -> Iterator[str]:
    """Heads of attn_output are columns; a few hundred rows are enough to recognise one."""
    if not len(groups):
        return
    heads = 0
    if pair.found.kind == "attn_output":
        counts = head_counts(artefact, is_key=False)
        heads = next((count for count in counts if pair.found.columns % count == 0), 0)
    size = pair.found.columns // heads if heads else 0
    chosen = (groups[:, None] * width + np.arange(width)).reshape(-1)[:MATCHED_COLUMNS]
    rows = min(pair.found.rows, max(64, MATCHED_WEIGHTS // pair.found.columns))
    found = _finite(pair.found.read(0, rows)).T[chosen]
    wanted = pair.wanted.read(0, rows).T
    likeness = _directions(found) @ _directions(wanted).T
    origin = np.where(likeness.max(axis=1) > _alike(rows), likeness.argmax(axis=1), -1)
    for run in _runs(chosen, origin):
        yield _sentence("column", run, size, pair, None)


def _runs(places: Indices, origins: Indices) -> Iterator[_Run]:
    """Join neighbours that moved together."""
    start = 0
    for index in range(1, len(places) + 1):
        if index < len(places) and places[index] == places[index - 1] + 1:
            known, before = origins[index] >= 0, origins[index - 1] >= 0
            if known == before and (not known or origins[index] == origins[index - 1] + 1):
                continue
        yield _Run(int(places[start]), int(places[index - 1]), int(origins[start]))
        start = index


def _sentence(what: str, run: _Run, size: int, pair: Pair, values: Float32 | None) -> str:
    """`size` rows (columns) are a head, 0: there are none; `values` begins with the rows of the run."""
    here = _named(what, run.first, run.last, size)
    verb = "are" if run.last > run.first else "is"
    if run.origin >= 0 and run.origin != run.first:
        there = _named(what, run.origin, run.origin + run.last - run.first, size)
        return f"{here} {verb} {there} of the source"
    if values is None:
        return f"{here} {verb} not the source's"
    part = values[: run.last - run.first + 1]
    return f"{here} {_described(part, pair.wanted.read(run.first, run.last + 1), pair)}"


def _named(what: str, first: int, last: int, size: int) -> str:
    place = f"{what} {first}" if first == last else f"{what}s {first} … {last}"
    if not size or first % size or (last + 1) % size:
        return place
    head, tail = first // size, last // size
    return f"{place} (head {head})" if head == tail else f"{place} (heads {head} … {tail})"


def _group_faults(pair: Pair, rows: Indices, columns: Indices, width: int) -> Iterator[str]:
    """Groups one by one; neighbours in a row are joined."""
    keys = rows * pair.found.columns + columns
    start = 0
    for index in range(1, len(keys) + 1):
        if index < len(keys) and keys[index] == keys[index - 1] + width and rows[index] == rows[index - 1]:
            continue
        row, first, last = int(rows[start]), int(columns[start]), int(columns[index - 1]) + width
        found = _finite(pair.found.read(row, row + 1)[:, first:last])
        wanted = pair.wanted.read(row, row + 1)[:, first:last]
        place = f"row {row}, columns {first} … {last - 1}" if pair.found.rows > 1 else f"columns {first} … {last - 1}"
        yield f"{place}: {_described(found, wanted, pair)}"
        start = index


def _described(found: Float32, wanted: Float32, pair: Pair) -> str:
    """What was made of `wanted`, in words that follow its place."""
    if not found.any():
        return "zero, the source is not"
    power = float(np.square(wanted, dtype=np.float64).sum())
    gain = float((found * wanted).sum(dtype=np.float64)) / power if power else math.inf
    is_gain = math.isfinite(gain) and abs(gain - 1) > 0.1 and abs(gain) > 1e-6
    if is_gain and relative_error(found, np.float32(gain) * wanted) <= pair.bound:
        return f"scaled by {gain:.4g}"
    error = relative_error(found, wanted)
    return f"off by {error:.3g} of its size; rounding to {_kind(pair)} explains at most {pair.bound:g}"


def _finite(values: Float32) -> Float32:
    made: Float32 = np.where(np.isfinite(values), values, np.float32(0))
    return made


def _directions(rows: Float32) -> Float32:
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.asarray(rows / np.where(length > 0, length, np.float32(1)), np.float32)


def _alike(values: int) -> float:
    """Cosine from which two rows of so many values are the same: beyond chance, and below two bits of rounding."""
    return min(0.95, max(0.6, 6 / math.sqrt(values)))


def _kind(pair: Pair) -> str:
    return pair.found.source_dtype.lower()
