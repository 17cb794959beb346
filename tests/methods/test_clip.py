"""Clipping chooses for every block what a search through all cuts and all other blocks' errors would choose."""

from __future__ import annotations

import pytest
import torch

from tersor.core.errors import SchemeError
from tersor.formats import get
from tersor.methods import clip, layer_error, rtn

FORMATS = (
    "q4_0",
    "q4_1",
    "q4_k",
    "q2_k",
    "q3_k",
    "iq4_nl",
    "int4-g32",
    "int3-g128-asym",
    "int4-channel",
    "nf4",
    "nvfp4",
)


def problem(rows: int = 16, columns: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with heavy tails, and the Hessian of inputs that depend on each other."""
    rng = torch.Generator().manual_seed(11)
    weight = torch.randn(rows, columns, generator=rng)
    weight[:, ::29] *= 3
    mixed = torch.eye(columns) + 0.5 * torch.randn(columns, columns, generator=rng) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=rng) @ mixed
    return weight, inputs.T @ inputs / len(inputs)


def oracle(weight: torch.Tensor, name: str, hessian: torch.Tensor) -> torch.Tensor:
    """Values after the search by the book, float64: row by row, block by block, the whole error for every cut."""
    fmt, h = get(name), hessian.double()
    importance = hessian.diagonal()
    values = torch.from_numpy(rtn.quantize(weight, fmt, importance=importance).dequantize()).double()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], fmt.block):
            columns = slice(start, start + fmt.block)
            best, least = values[row], float("inf")
            for shrink in (1.0, *clip.SHRINKS):
                x = weight[row : row + 1, columns]
                cut = x.clamp(min=min(float(x.min()), 0.0) * shrink, max=max(float(x.max()), 0.0) * shrink)
                data = fmt.encode(cut.numpy(), importance=importance[columns].numpy())
                grid, _ = fmt.unpack(torch.from_numpy(data), fmt.block)
                trial = values[row].clone()
                if shrink < 1:
                    trial[columns] = grid.values(grid.round_all(x))[0].double()
                error = weight[row].double() - trial
                if float(error @ h @ error) < least:
                    best, least = trial, float(error @ h @ error)
            values[row] = best
    return values


@pytest.mark.parametrize("name", ["q4_0", "int4-g32", "int3-g128-asym", "iq4_nl"])
def test_cuts_are_those_of_a_search_by_the_book(name: str) -> None:
    weight, hessian = problem(rows=4)
    found = torch.from_numpy(clip.quantize(weight, get(name), hessian=hessian).dequantize())
    assert ((found - oracle(weight, name, hessian)).abs() > 1e-5).float().mean() < 0.01  # ties


@pytest.mark.parametrize("name", FORMATS)
def test_no_row_errs_more_than_by_rounding_and_all_together_less(name: str) -> None:
    weight, hessian = problem()
    found = torch.from_numpy(clip.quantize(weight, get(name), hessian=hessian).dequantize())
    plain = torch.from_numpy(rtn.quantize(weight, get(name), importance=hessian.diagonal()).dequantize())
    errors = [(((weight - values) @ hessian) * (weight - values)).sum(dim=1) for values in (found, plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < 0.995 * errors[1].sum()


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3", "int8-tensor"])
def test_formats_without_blocks_are_rounded(name: str) -> None:
    weight, hessian = problem()
    found = clip.quantize(weight, get(name), hessian=hessian)
    assert (found.data == rtn.quantize(weight, get(name), importance=hessian.diagonal()).data).all()


def test_weights_on_the_grid_stay_there() -> None:
    weight, hessian = problem()
    on_grid = torch.from_numpy(rtn.quantize(weight, get("q4_0")).dequantize())
    found = clip.quantize(on_grid, get("q4_0"), hessian=hessian)
    plain = rtn.quantize(on_grid, get("q4_0"), importance=hessian.diagonal())
    assert layer_error(on_grid, found, hessian) <= layer_error(on_grid, plain, hessian)


def test_rows_never_know_of_each_other() -> None:
    weight, hessian = problem(rows=40)
    whole = clip.quantize(weight, get("q4_k"), hessian=hessian, threads=1)
    part = clip.quantize(weight[:7], get("q4_k"), hessian=hessian, threads=3)
    assert (whole.data[:7] == part.data).all()


def test_ranges_that_do_not_shrink_are_refused() -> None:
    weight, hessian = problem()
    with pytest.raises(SchemeError, match=r"above 0 and below 1, got \(1\.5,\)"):
        clip.quantize(weight, get("q4_0"), hessian=hessian, shrinks=(1.5,))
