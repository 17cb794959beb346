"""From source tensors to GGUF tensors, a range of rows at a time.

Each class stands for a tensor that is not read yet. `read(start, stop)` takes rows of the tensor flattened to two
dimensions, [prod(shape[:-1]), shape[-1]], and reads no source row that these do not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import ShapeError, UnsupportedError
from tersor.files.dtypes import INTEGERS, Numbers

__all__ = [
    "Affine", "Constant", "Half", "HeadsInterleaved", "Leading", "Origin", "Rows", "Source", "Stacked", "flat",
    "origin",
]  # fmt: skip

Index: TypeAlias = npt.NDArray[np.int64]


class Rows(Protocol):
    """A tensor that can be read by rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, in numpy order."""
        ...

    def read(self, start: int, stop: int) -> Float32:
        """Return rows `start` to `stop` of the flattened tensor, a fresh float32 [stop - start, shape[-1]]."""
        ...


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a tensor flattened to two dimensions; a vector is one row.

    >>> flat((8, 64, 32)), flat((32,))
    ((512, 32), (1, 32))
    """
    return math.prod(shape[:-1]), shape[-1]


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor as the checkpoint stores it; `fetch(name, start, stop)` reads rows of its leading axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fetch: Callable[[str, int, int], Numbers]

    def read(self, start: int, stop: int) -> Float32:
        """Return the rows; UnsupportedError for integers, which are codes of a quantized model, not weights."""
        if self.dtype in INTEGERS:
            raise UnsupportedError(
                f"{self.name} holds {self.dtype}, not weights: a quantized checkpoint? load the original"
            )
        if len(self.shape) == 1:
            values = self.fetch(self.name, 0, self.shape[0]).reshape(1, -1)[start:stop]
        elif len(self.shape) == 2:
            values = self.fetch(self.name, start, stop)
        else:
            inner = math.prod(self.shape[1:-1])
            first, last = start // inner, -(-stop // inner)
            values = self._slices(first, last, start, stop, inner)
        return np.ascontiguousarray(values, dtype=np.float32)

    def _slices(self, first: int, last: int, start: int, stop: int, inner: int) -> Numbers:
        """Read a 3-D tensor one slice of the leading axis at a time, keeping only the rows asked for."""
        parts = []
        for index in range(first, last):
            rows = self.fetch(self.name, index, index + 1).reshape(inner, self.shape[-1])
            parts.append(rows[max(start - index * inner, 0) : stop - index * inner])
        return np.concatenate(parts) if parts else np.empty((0, self.shape[-1]), np.float32)


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that is computed, not stored: rope factors."""

    values: Float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.values.shape

    def read(self, start: int, stop: int) -> Float32:
        """Return a copy of the rows."""
        return self.values.reshape(flat(self.values.shape))[start:stop].copy()


@dataclass(frozen=True, slots=True)
class Affine:
    """Every element as (x + `shift`) · `factor`: Gemma's norms are stored less 1."""

    inner: Rows
    shift: float = 0.0
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inner tensor."""
        return self.inner.shape

    def read(self, start: int, stop: int) -> Float32:
        """Return the changed rows; the sum is rounded once to float32, then the product."""
        values = self.inner.read(start, stop)
        values += np.float32(self.shift)
        values *= np.float32(self.factor)
        return values


@dataclass(frozen=True, slots=True)
class HeadsInterleaved:
    """Q or K with the two halves of each head interleaved, for engines that rotate neighbouring pairs.

    Row 2j + s of a head comes from row j + s · (head rows / 2). A bias is reordered the same way.
    """

    inner: Rows
    heads: int

    def __post_init__(self) -> None:
        length = self.shape[0]
        if self.heads < 1 or length % (2 * self.heads):
            raise ShapeError(f"{length} rows do not divide into {self.heads} heads of an even number of rows")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inner tensor."""
        return self.inner.shape

    def read(self, start: int, stop: int) -> Float32:
        """Return the reordered rows."""
        if len(self.shape) == 1:
            return self.inner.read(start, stop)[:, self.sources(0, self.shape[0])]
        return _gather(self.inner, self.sources(start, stop))

    def sources(self, start: int, stop: int) -> Index:
        """Return the inner row that each of the rows comes from."""
        rows = self.shape[0] // self.heads
        head, place = np.divmod(np.arange(start, stop, dtype=np.int64), rows)
        sources: Index = head * rows + place % 2 * (rows // 2) + place // 2
        return sources


@dataclass(frozen=True, slots=True)
class Half:
    """The first or second half of the rows of each matrix: gate and up, stored as one."""

    inner: Rows
    which: Literal[0, 1]

    def __post_init__(self) -> None:
        if len(self.inner.shape) < 2 or self.inner.shape[-2] % 2:
            raise ShapeError(f"{self.inner.shape} has no two halves of rows")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one half."""
        *leading, rows, columns = self.inner.shape
        return (*leading, rows // 2, columns)

    def read(self, start: int, stop: int) -> Float32:
        """Return the rows of this half."""
        return _gather(self.inner, self.sources(start, stop))

    def sources(self, start: int, stop: int) -> Index:
        """Return the inner row that each of the rows comes from."""
        rows = self.shape[-2]
        matrix, place = np.divmod(np.arange(start, stop, dtype=np.int64), rows)
        sources: Index = matrix * 2 * rows + self.which * rows + place
        return sources


@dataclass(frozen=True, slots=True)
class Stacked:
    """Matrices of one shape as one tensor, [number, rows, columns]: the experts of a layer."""

    parts: tuple[Rows, ...]

    def __post_init__(self) -> None:
        shapes = {part.shape for part in self.parts}
        if len(shapes) != 1:
            raise ShapeError(f"experts of different shapes cannot be stacked: {sorted(shapes)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of parts, then the shape of each."""
        return (len(self.parts), *self.parts[0].shape)

    def read(self, start: int, stop: int) -> Float32:
        """Return rows of the stack, from the parts that hold them."""
        rows, columns = flat(self.parts[0].shape)
        made = np.empty((stop - start, columns), dtype=np.float32)
        for index in range(start // rows, -(-stop // rows)):
            first, last = max(start - index * rows, 0), min(stop - index * rows, rows)
            place = index * rows + first - start
            made[place : place + last - first] = self.parts[index].read(first, last)
        return made


@dataclass(frozen=True, slots=True)
class Leading:
    """The first `rows` rows: embeddings without the rows that no token has."""

    inner: Rows
    rows: int

    def __post_init__(self) -> None:
        if not 0 < self.rows <= self.inner.shape[0]:
            raise ShapeError(f"{self.rows} leading rows of {self.inner.shape} asked for")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, cut."""
        return (self.rows, *self.inner.shape[1:])

    def read(self, start: int, stop: int) -> Float32:
        """Return the rows."""
        return self.inner.read(start, stop)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where n rows come from: row i is (`sources[which[i]]` at row `row[i]` + `shift[i]`) · `factor[i]`.

    sources  the tensors, each once: of a checkpoint, of a GGUF, or computed
    which    [n] int64, places in `sources`
    row      [n] int64, rows of the source flattened to two dimensions
    shift    [n] float32, `factor` too; 0 and 1 where a row is taken as it is
    """

    sources: tuple[Rows, ...]
    which: Index
    row: Index
    shift: Float32
    factor: Float32


def origin(values: Rows, start: int, stop: int) -> Origin:
    """Return where rows `start` to `stop` come from, without reading them.

    ShapeError for a vector whose elements are reordered, which no row describes, and for a change upon a change.

    >>> gate_up = Constant(np.zeros((8, 2), np.float32))
    >>> origin(Half(gate_up, 1), 1, 3).row.tolist()
    [5, 6]
    """
    match values:
        case Affine(inner, shift, factor):
            found = _inner_origin(inner, np.arange(start, stop, dtype=np.int64))
            if np.any(found.shift != 0) or np.any(found.factor != 1):
                raise ShapeError(f"rows of {values.shape} are changed twice; an origin tells of one change")
            full = np.full_like
            return Origin(found.sources, found.which, found.row, full(found.shift, shift), full(found.factor, factor))
        case HeadsInterleaved() if len(values.shape) == 1:
            raise ShapeError(f"the elements of a vector {values.shape} are reordered; that has no origin by rows")
        case HeadsInterleaved(inner=inner) | Half(inner=inner):
            return _inner_origin(inner, values.sources(start, stop))
        case Leading(inner=inner):
            return origin(inner, start, stop)
        case Stacked(parts):
            rows = flat(parts[0].shape)[0]
            indices = range(start // rows, -(-stop // rows)) if stop > start else range(0)
            pieces = [origin(parts[i], max(start - i * rows, 0), min(stop - i * rows, rows)) for i in indices]
            return _joined(pieces) if pieces else origin(parts[0], 0, 0)
    plain = np.zeros(stop - start, dtype=np.float32)
    return Origin((values,), np.zeros(stop - start, np.int64), np.arange(start, stop, dtype=np.int64), plain, plain + 1)


def _inner_origin(inner: Rows, rows: Index) -> Origin:
    """Return where the given rows of `inner` come from, in their order."""
    if not len(rows):
        return origin(inner, 0, 0)
    low = int(rows.min())
    found, places = origin(inner, low, int(rows.max()) + 1), rows - low
    return Origin(found.sources, found.which[places], found.row[places], found.shift[places], found.factor[places])


def _joined(pieces: list[Origin]) -> Origin:
    """Return the origins one after another; a source that several name stands once."""
    sources: list[Rows] = []
    which = []
    for piece in pieces:
        for source in piece.sources:
            if not any(source is known for known in sources):
                sources.append(source)
        places = [next(i for i, known in enumerate(sources) if known is source) for source in piece.sources]
        which.append(np.array(places, dtype=np.int64)[piece.which])
    return Origin(
        tuple(sources),
        np.concatenate(which),
        np.concatenate([piece.row for piece in pieces]),
        np.concatenate([piece.shift for piece in pieces]),
        np.concatenate([piece.factor for piece in pieces]),
    )


def _gather(inner: Rows, rows: Index) -> Float32:
    """Read the given distinct rows, each run of neighbours at once, and return them in the given order."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    made = np.empty((len(rows), inner.shape[-1]), dtype=np.float32)
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(ascending) != 1) + 1):
        if len(run):
            made[order[run]] = inner.read(int(ascending[run[0]]), int(ascending[run[-1]]) + 1)
    return made
