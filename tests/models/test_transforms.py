from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.files.dtypes import Numbers
from tersor.models.transforms import (
    Affine,
    Constant,
    Half,
    HeadsInterleaved,
    Leading,
    Rows,
    Source,
    Stacked,
    flat,
    origin,
)


class Recorder:
    """A checkpoint in memory that remembers which rows of the leading axis were read."""

    def __init__(self, **tensors: Any) -> None:
        self.tensors = tensors
        self.read_rows: list[tuple[str, int, int]] = []

    def fetch(self, name: str, start: int, stop: int) -> Numbers:
        self.read_rows.append((name, start, stop))
        rows: Numbers = self.tensors[name][start:stop]
        return rows

    def source(self, name: str) -> Source:
        return Source(name, self.tensors[name].shape, "F32", self.fetch)

    @property
    def count(self) -> int:
        return sum(stop - start for _, start, stop in self.read_rows)


def matrix(*shape: int) -> Any:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def whole(rows: Rows) -> Any:
    return rows.read(0, flat(rows.shape)[0])


CASES: dict[str, Callable[[Recorder], Rows]] = {
    "source": lambda r: r.source("q"),
    "source of three axes": lambda r: r.source("stack"),
    "heads": lambda r: HeadsInterleaved(r.source("q"), 4),
    "affine": lambda r: Affine(r.source("q"), shift=1.0, factor=0.5),
    "half": lambda r: Half(r.source("stack"), 1),
    "stacked": lambda r: Stacked((r.source("q"), r.source("k"), r.source("q"))),
    "leading": lambda r: Leading(r.source("q"), 17),
    "stacked halves": lambda r: Stacked((Half(r.source("q"), 0), Half(r.source("q"), 1), Half(r.source("k"), 1))),
    "affine heads of leading rows": lambda r: Affine(HeadsInterleaved(Leading(r.source("q"), 16), 2), factor=3.0),
    "constant": lambda r: Constant(matrix(5, 3)),
}


@given(case=st.sampled_from(sorted(CASES)), data=st.data())
def test_any_range_of_rows_equals_that_part_of_the_whole(case: str, data: st.DataObject) -> None:
    rows = CASES[case](Recorder(q=matrix(24, 5), k=matrix(24, 5) + 100, stack=matrix(3, 8, 5)))
    total = flat(rows.shape)[0]
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    part = rows.read(start, stop)
    assert part.dtype == np.float32
    assert part.flags.c_contiguous
    np.testing.assert_array_equal(part, whole(rows)[start:stop])


@given(start=st.integers(0, 24), length=st.integers(0, 24))
def test_reordered_heads_read_exactly_the_rows_that_they_need(start: int, length: int) -> None:
    recorder = Recorder(q=matrix(24, 5))
    stop = min(start + length, 24)
    HeadsInterleaved(recorder.source("q"), 3).read(start, stop)
    assert recorder.count == stop - start


def test_heads_are_interleaved_as_the_reshape_and_swap_of_the_paper_says() -> None:
    q = matrix(24, 5)
    expected = q.reshape(3, 2, 4, 5).swapaxes(1, 2).reshape(24, 5)
    np.testing.assert_array_equal(whole(HeadsInterleaved(Recorder(q=q).source("q"), 3)), expected)


def test_a_bias_is_reordered_like_the_rows_of_its_matrix() -> None:
    recorder = Recorder(q=matrix(24, 1), b=matrix(24))
    rows = whole(HeadsInterleaved(recorder.source("q"), 3))[:, 0]
    np.testing.assert_array_equal(whole(HeadsInterleaved(recorder.source("b"), 3)), rows[None])


def test_a_head_of_odd_size_cannot_be_interleaved() -> None:
    with pytest.raises(ShapeError, match="15 rows do not divide into 3 heads of an even number"):
        HeadsInterleaved(Recorder(q=matrix(15, 2)).source("q"), 3)


def test_halves_together_are_the_whole() -> None:
    recorder = Recorder(stack=matrix(3, 8, 5))
    halves = [whole(Half(recorder.source("stack"), which)).reshape(3, 4, 5) for which in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), recorder.tensors["stack"])


def test_experts_of_different_shapes_are_not_stacked() -> None:
    recorder = Recorder(a=matrix(4, 2), b=matrix(2, 4))
    with pytest.raises(ShapeError, match="different shapes"):
        Stacked((recorder.source("a"), recorder.source("b")))


def test_reading_never_changes_what_is_read_again() -> None:
    rows = Affine(Constant(matrix(2, 3)), shift=1.0)
    np.testing.assert_array_equal(whole(rows), whole(rows))


def test_integers_are_refused_as_weights() -> None:
    source = Source("codes", (2, 2), "I32", lambda *_: np.zeros((2, 2), np.int32))
    with pytest.raises(UnsupportedError, match="codes holds I32, not weights"):
        source.read(0, 1)


def test_cutting_to_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(ShapeError, match="9 leading rows"):
        Leading(Recorder(q=matrix(4, 2)).source("q"), 9)


@given(case=st.sampled_from(sorted(CASES)), data=st.data())
def test_the_origin_of_rows_says_what_reading_them_gives(case: str, data: st.DataObject) -> None:
    recorder = Recorder(q=matrix(24, 5), k=matrix(24, 5) + 100, stack=matrix(3, 8, 5))
    rows = CASES[case](recorder)
    start = data.draw(st.integers(0, flat(rows.shape)[0]))
    stop = data.draw(st.integers(start, flat(rows.shape)[0]))
    found = origin(rows, start, stop)
    assert recorder.count == 0
    made = np.empty((stop - start, 5 if case != "constant" else 3), dtype=np.float32)
    for i, (which, row) in enumerate(zip(found.which.tolist(), found.row.tolist(), strict=True)):
        made[i] = (found.sources[which].read(row, row + 1)[0] + found.shift[i]) * found.factor[i]
    np.testing.assert_array_equal(made, rows.read(start, stop))


def test_the_origin_names_each_source_once() -> None:
    recorder = Recorder(q=matrix(24, 5), k=matrix(24, 5))
    q, k = recorder.source("q"), recorder.source("k")
    found = origin(Stacked((q, k, q)), 20, 50)
    assert found.sources == (q, k)
    assert found.which.tolist() == [0] * 4 + [1] * 24 + [0] * 2
    assert found.row.tolist() == [*range(20, 24), *range(24), 0, 1]


def test_a_reordered_vector_has_no_origin_by_rows() -> None:
    with pytest.raises(ShapeError, match="no origin by rows"):
        origin(HeadsInterleaved(Recorder(b=matrix(24)).source("b"), 3), 0, 1)


def test_a_change_upon_a_change_has_no_origin() -> None:
    with pytest.raises(ShapeError, match="changed twice"):
        origin(Affine(Affine(Constant(matrix(2, 3)), shift=1.0), factor=2.0), 0, 2)
