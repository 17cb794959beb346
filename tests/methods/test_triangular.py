"""Panels against one call in double precision; and no thread of torch changes a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tersor.formats import get
from tersor.methods import METHODS
from tersor.methods.solving.triangular import cholesky, cholesky_solved, solved

SIZES = [1, 511, 512, 513, 1100]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def definite(size: int) -> Tensor:
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return x.T @ x / len(x) + 0.01 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_panels_factor_as_one_call_does(size: int) -> None:
    matrix = definite(size)
    wanted = torch.linalg.cholesky(matrix)
    found = cholesky(matrix.float())
    assert found is not None
    assert bool((found.triu(1) == 0).all())
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("place", [0, 511, 512, 900])
def test_panels_notice_what_is_not_definite(place: int) -> None:
    matrix = torch.eye(1000)
    matrix[place, place] = -1
    assert cholesky(matrix) is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_panels_solve_as_one_call_does(size: int, unit: bool, upper: bool) -> None:
    matrix = definite(size)  # the other triangle is full, and no solver may read it
    triangle = matrix.triu() if upper else matrix.tril()
    if unit:
        triangle.diagonal().fill_(1)
    right = torch.randn(size, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = solved(matrix, right.clone(), upper=upper, unit=unit)
    assert float((triangle @ found - right).norm() / right.norm()) < 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_what_is_solved_with_a_factor_solves_the_matrix(size: int) -> None:
    matrix = definite(size)
    right = torch.randn(5, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).T
    lower = torch.linalg.cholesky(matrix)
    assert float((matrix @ cholesky_solved(lower, right) - right).norm() / right.norm()) < 1e-9


def by_threads(make: Callable[[], Tensor]) -> list[Tensor]:
    made = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        made.append(make())
    return made


def test_no_thread_of_torch_changes_a_bit() -> None:
    hessian, right = definite(1500).float(), torch.randn(1500, 1500, generator=torch.Generator().manual_seed(1))
    factors = by_threads(lambda: cholesky(hessian.clone()))  # type: ignore[arg-type, return-value]  # it is definite
    assert all(bool((one == factors[0]).all()) for one in factors)
    solutions = by_threads(lambda: cholesky_solved(factors[0], right))
    assert all(bool((one == solutions[0]).all()) for one in solutions)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("name", ["gptq", "qronos", "gptaq", "foem", "best"])
def test_no_thread_of_torch_changes_a_code(name: str) -> None:
    rng = torch.Generator().manual_seed(2)
    weight, hessian = torch.randn(16, 768, generator=rng), definite(768).float()
    given = dict.fromkeys(set(METHODS[name].needs) | ({"cross"} & set(METHODS[name].uses)), hessian)
    if "cross" in given:
        given["cross"] = hessian + 0.01 * torch.randn(768, 768, generator=rng)

    def codes() -> Tensor:
        fresh = {key: value.clone() for key, value in given.items()}  # nothing remembered serves another thread count
        return torch.from_numpy(METHODS[name].function(weight, get("int4-g128"), threads=1, **fresh).data)

    made = by_threads(codes)
    assert all(bool((one == made[0]).all()) for one in made)
