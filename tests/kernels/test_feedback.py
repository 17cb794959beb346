"""Native error feedback equals its definition bit for bit, whatever the stages, threads and instruction sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tersor.core.errors import SchemeError, ShapeError
from tersor.kernels import codec, feedback
from tersor.kernels.feedback import Points, State
from tersor.kernels.reference import blocked
from tersor.kernels.reference import feedback as definition
from tersor.kernels.reference.families.lookup import FOUR_BIT_FLOATS, NONLINEAR

COLUMNS, ROWS, WIDTH = 300, 96, 20
NATIVE = codec.native()
needs_native = pytest.mark.skipif(NATIVE is None, reason="no native kernels here")
TABLES = {"affine": None, "nonlinear": NONLINEAR, "floats with two zeros": FOUR_BIT_FLOATS}


@pytest.fixture(params=TABLES, ids=str)
def problem(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, Points]:
    """Weights, matrix and grid with steps of both signs, zero, tiny and huge."""
    rng = torch.Generator().manual_seed(3)
    weight = torch.randn(COLUMNS, ROWS, generator=rng)
    matrix = torch.randn(COLUMNS, COLUMNS, generator=rng) * 0.05
    table = TABLES[request.param]
    step = torch.rand(COLUMNS // WIDTH, ROWS, generator=rng) * (0.3 if table is None else 0.01)
    step[2, :20] = 0
    step[3] *= -1
    step[4, 5], step[5, 5] = 1e-38, 1e30
    offset = torch.rand(step.shape, generator=rng) * 0.2
    group = torch.randperm(COLUMNS, generator=rng).to(torch.int32) // WIDTH
    values = None if table is None else torch.tensor(table, dtype=torch.float32)
    return weight, matrix, Points(step, offset, torch.full_like(step, 7), group, 16, values)


def fresh(weight: torch.Tensor, *, again: bool = False) -> State:
    """A first pass, or one over errors that are there already."""
    error = torch.sin(weight) * 0.1 if again else torch.zeros_like(weight)
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    return State(weight.clone(), weight, error, error.clone() if again else error, codes)


def same(a: State, b: State) -> bool:
    """Equal bits everywhere."""
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("target", "error", "change", "codes"))


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, choose_isa: Callable[[str], None]) -> str:
    """Every instruction set that this processor has."""
    name: str = request.param
    choose_isa(name)
    return name


@needs_native
@pytest.mark.parametrize("again", [False, True], ids=["first pass", "second pass"])
def test_native_is_bit_exact(problem: tuple[torch.Tensor, torch.Tensor, Points], isa: str, *, again: bool) -> None:
    weight, matrix, points = problem
    expected, found = fresh(weight, again=again), fresh(weight, again=again)
    definition.settle(expected, points, matrix, 0, COLUMNS, COLUMNS)
    feedback.settle(found, points, matrix, 0, COLUMNS, threads=2)
    assert same(expected, found), isa


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("span", "inner"), [(300, 300), (100, 20), (130, 1), (7, 7)])
def test_stages_and_threads_change_no_bit(
    problem: tuple[torch.Tensor, torch.Tensor, Points], span: int, inner: int, threads: int
) -> None:
    weight, matrix, points = problem
    expected, found = fresh(weight), fresh(weight)
    feedback.settle(expected, points, matrix, 0, COLUMNS, threads=1)
    for start in range(0, COLUMNS, span):
        stop = min(COLUMNS, start + span)
        for first in range(start, stop, inner):
            feedback.settle(found, points, matrix, first, min(stop, first + inner), stop, threads=threads)
        feedback.propagate(found, matrix, start, stop, stop, threads=threads)
    assert same(expected, found)


@needs_native
def test_every_panel_of_rows_is_bit_exact(isa: str) -> None:
    columns, rows = 150, 544  # two panels of rows and a part, a block of columns and a part
    rng = torch.Generator().manual_seed(5)
    weight = torch.randn(columns, rows, generator=rng)
    matrix = torch.randn(columns, columns, generator=rng) * 0.05
    step = torch.rand(3, rows, generator=rng) * 0.3
    group = torch.arange(columns, dtype=torch.int32) // 50
    points = Points(step, torch.zeros_like(step), torch.full_like(step, 7), group, 16, None)
    expected, found = fresh(weight), fresh(weight)
    definition.settle(expected, points, matrix, 0, 140, 147)
    definition.propagate(expected, matrix, 3, 140, 141, columns)
    feedback.settle(found, points, matrix, 0, 140, 147, threads=1)
    feedback.propagate(found, matrix, 3, 140, 141, threads=1)
    assert same(expected, found), isa


@needs_native
@pytest.mark.parametrize("row", [0, 5, 21, 31, 64, 95])
def test_changes_of_single_rows_are_propagated_too(
    problem: tuple[torch.Tensor, torch.Tensor, Points], isa: str, row: int
) -> None:
    weight, matrix, _ = problem
    expected, found = fresh(weight, again=True), fresh(weight, again=True)
    for state in (expected, found):
        state.change[:] = 0
        state.change[3::7, row] = weight[3::7, row]
    definition.propagate(expected, matrix, 2, 290, 5, COLUMNS)
    feedback.propagate(found, matrix, 2, 290, 5, threads=2)
    assert same(expected, found), isa
    assert not torch.equal(found.target[5:, row], weight[5:, row])
    assert torch.equal(found.target[:5], weight[:5])


@needs_native
def test_rows_do_not_know_of_each_other(problem: tuple[torch.Tensor, torch.Tensor, Points]) -> None:
    weight, matrix, points = problem
    expected = fresh(weight)
    feedback.settle(expected, points, matrix, 0, COLUMNS)
    part = slice(32, 64)
    found = fresh(weight[:, part].contiguous())
    cut = replace(points, step=points.step[:, part], offset=points.offset[:, part], zero=points.zero[:, part])
    feedback.settle(found, cut, matrix, 0, COLUMNS)
    assert torch.equal(expected.codes[:, part], found.codes)
    assert torch.equal(expected.error[:, part], found.error)


def test_broken_arguments_are_refused(problem: tuple[torch.Tensor, torch.Tensor, Points]) -> None:
    weight, matrix, points = problem
    state = fresh(weight)
    with pytest.raises(ShapeError, match=r"columns 10 … 5 .* not in order within 300"):
        feedback.settle(state, points, matrix, 10, 5)
    with pytest.raises(ShapeError, match=r"must be \[300, 300\], got \(300, 299\)"):
        feedback.settle(state, points, matrix[:, 1:], 0, 5)
    with pytest.raises(ShapeError, match="codes must be contiguous"):
        feedback.settle(replace(state, codes=state.codes[1:]), points, matrix, 0, 5)
    with pytest.raises(ShapeError, match="target must be contiguous"):
        feedback.settle(replace(state, target=state.target.T.contiguous().T), points, matrix, 0, 5)
    with pytest.raises(SchemeError, match="300 levels do not fit into a byte"):
        feedback.settle(state, replace(points, levels=300), matrix, 0, 5)
    with pytest.raises(ShapeError, match="a grid for 300 columns of 96 rows"):
        feedback.settle(state, replace(points, group=points.group[1:]), matrix, 0, 5)


@needs_native
def test_a_group_that_does_not_exist_is_refused(problem: tuple[torch.Tensor, torch.Tensor, Points]) -> None:
    weight, matrix, points = problem
    with pytest.raises(ValueError, match="no such group"):
        feedback.settle(fresh(weight), replace(points, group=points.group + 1000), matrix, 0, 5)


@needs_native
def test_targets_that_are_not_finite_get_the_codes_of_the_definition(
    problem: tuple[torch.Tensor, torch.Tensor, Points], isa: str
) -> None:
    weight, matrix, points = problem
    still = torch.zeros_like(matrix)  # nothing spreads: each column shows what it does by itself
    expected, found = fresh(weight), fresh(weight)
    for state in (expected, found):
        for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
            state.target[:, row] = value
    definition.settle(expected, points, still, 0, COLUMNS, COLUMNS)
    feedback.settle(found, points, still, 0, COLUMNS, threads=2)
    rows = slice(0 if points.table is None else 1, ROWS)  # what is nearest to NaN in a table nobody defines
    assert torch.equal(expected.codes[:, rows], found.codes[:, rows]), isa


@pytest.mark.parametrize("again", [False, True], ids=["first pass", "second pass"])
def test_what_is_fast_on_a_gpu_finds_the_same_codes(
    problem: tuple[torch.Tensor, torch.Tensor, Points], *, again: bool
) -> None:
    weight, matrix, points = problem
    expected, found = fresh(weight, again=again), fresh(weight, again=again)
    definition.settle(expected, points, matrix, 7, 290, 295)
    blocked.settle(found, points, matrix, 7, 290, 295)
    definition.propagate(expected, matrix, 7, 290, 295, COLUMNS)
    blocked.propagate(found, matrix, 7, 290, 295, COLUMNS)
    # A target at the middle of two values falls either way, and what comes after it in that row with it.
    equal = (expected.codes == found.codes).all(dim=0)
    assert equal.float().mean() > 0.9
    for name in ("target", "error", "change"):
        torch.testing.assert_close(
            getattr(found, name)[:, equal], getattr(expected, name)[:, equal], rtol=1e-4, atol=1e-4
        )


def test_a_gpu_takes_the_fast_form() -> None:
    state = fresh(torch.zeros(4, 32, device="meta"))
    assert feedback._definition(state) is blocked
    assert feedback._definition(fresh(torch.zeros(4, 32))) is definition
