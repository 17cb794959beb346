"""GPTQ equals a slow oracle that inverts the Hessian anew for every column, on the grids of every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.formats import get
from tersor.kernels import codec
from tersor.methods import METHODS, gptq, layer_error, rtn
from tersor.methods.solving import matrix
from tersor.methods.solving.factor import ORDERS, Order, factor
from tersor.methods.solving.matrix import MatrixGrid
from tersor.methods.solving.search import fitted

FORMATS = (
    "q4_k",
    "q2_k",
    "q3_k",
    "q4_0",
    "q4_1",
    "iq4_nl",
    "mxfp4",
    "int4-g32",
    "int4-g32-asym-f16",
    "int3-channel",
    "nf4",
    "nvfp4",
)
ALL = (
    *FORMATS,
    "q5_0",
    "q5_1",
    "q8_0",
    "q5_k",
    "q6_k",
    "iq4_xs",
    "tq1_0",
    "tq2_0",
    "binary",
    "int8-tensor",
    "fp8_e4m3",
    "bf16",
)


def problem(rows: int = 24, columns: int = 256, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the Hessian of inputs that depend on each other, with unequal scales."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng)
    mixed = torch.eye(columns) + 0.5 * torch.randn(columns, columns, generator=rng) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=rng) @ mixed
    inputs = inputs * torch.linspace(0.5, 2, columns)[torch.randperm(columns, generator=rng)]
    return weight, inputs.T @ inputs / len(inputs)


def oracle(
    weight: torch.Tensor, grid: MatrixGrid, hessian: torch.Tensor, order: list[int], damping: float
) -> torch.Tensor:
    """Codes by the book, in float64: round a column, spread its error by the inverse of what is left of the Hessian."""
    h = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    w = weight.double().clone()
    codes = torch.zeros(weight.shape, dtype=torch.int32)
    for k, j in enumerate(order):
        codes[:, j] = grid.round(w.float())[:, j]
        error = w[:, j] - grid.values(codes)[:, j].double()
        left = order[k:]
        inverse = torch.linalg.inv(h[left][:, left])
        w[:, left] -= error[:, None] / inverse[0, 0] * inverse[0]
    return codes


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("order", ["activation", "natural"])
def test_codes_equal_the_slow_oracle(name: str, order: Order) -> None:
    fmt = get(name)
    weight, hessian = problem()
    factored = factor(hessian, order=order)
    assert factored is not None
    grid = fitted(weight, fmt, factored.hessian.diagonal())
    columns = list(range(256)) if factored.order is None else factored.order.tolist()
    expected = oracle(weight, grid, hessian, columns, 0.01)
    found = gptq.settled(weight, grid, factored).codes
    assert (expected != found).float().mean() < 2e-4  # a tie of float32 and float64
    errors = [(weight - grid.values(c)).double() for c in (expected, found)]
    slow, fast = (float((e @ hessian.double() * e).sum()) for e in errors)
    assert fast == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("order", ORDERS)
def test_every_format_gets_better_than_by_rounding(name: str, order: Order) -> None:
    fmt = get(name)
    weight, hessian = problem()
    plain = rtn.quantize(weight, fmt, importance=hessian.diagonal())
    found = gptq.quantize(weight, fmt, hessian=hessian, order=order)
    assert found.fallback is None
    assert layer_error(weight, found, hessian) < layer_error(weight, plain, hessian) * 0.9


@pytest.mark.parametrize("name", ["q4_k", "q4_0", "int4-g32-asym", "iq4_nl"])
@pytest.mark.parametrize("order", ORDERS)
def test_threads_and_rows_never_change_the_bytes(name: str, order: Order) -> None:
    weight, hessian = problem(rows=70)
    whole = gptq.quantize(weight, get(name), hessian=hessian, order=order, threads=1)
    shared = gptq.quantize(weight, get(name), hessian=hessian, order=order, threads=3)
    halves = [gptq.quantize(part, get(name), hessian=hessian, order=order).data for part in (weight[:33], weight[33:])]
    assert (whole.data == shared.data).all()
    assert (whole.data[:33] == halves[0]).all()
    assert (whole.data[33:] == halves[1]).all()


@pytest.mark.parametrize("order", ["natural", "groups"])
@pytest.mark.parametrize("name", ["q4_k", "int4-g128"])
def test_when_the_rest_hears_of_errors_never_changes_the_bytes(
    name: str, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem(columns=768)
    found = []
    for lazy in (1, 256, 512, 1024):
        monkeypatch.setattr(gptq, "LAZY", lazy)
        found.append(gptq.quantize(weight, get(name), hessian=hessian, order=order))
    assert all((other.data == found[0].data).all() for other in found[1:])


@pytest.mark.skipif(codec.native() is None, reason="no native kernels here")
@pytest.mark.parametrize("order", ORDERS)
def test_the_reference_gives_the_same_bytes(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(rows=5)
    native = gptq.quantize(weight, get("q4_k"), hessian=hessian, order=order)
    monkeypatch.setenv("TERSOR_KERNELS", "reference")
    assert (gptq.quantize(weight, get("q4_k"), hessian=hessian, order=order).data == native.data).all()


@pytest.mark.parametrize("name", ["int4-channel", "int8-channel-asym"])
def test_permuting_the_columns_commutes_where_a_row_has_one_scale(name: str) -> None:
    weight, hessian = problem()
    shuffled = torch.randperm(256, generator=torch.Generator().manual_seed(9))
    plain, moved = factor(hessian), factor(hessian[shuffled][:, shuffled])
    assert plain is not None
    assert moved is not None
    grid = fitted(weight, get(name), None)
    codes = gptq.settled(weight, grid, plain).codes[:, shuffled]
    again = gptq.settled(weight[:, shuffled], grid, moved).codes
    assert (codes != again).float().mean() < 2e-3  # the sum of the diagonal, and so the damping, rounds differently


def test_the_packed_bytes_decode_to_the_values_that_errors_were_taken_from() -> None:
    weight, hessian = problem()
    factored = factor(hessian)
    assert factored is not None
    for name in ALL:
        solution = gptq.solve(weight, get(name), factored, order="activation")
        packed = gptq.quantize(weight, get(name), hessian=hessian)
        assert torch.equal(torch.from_numpy(packed.dequantize()), solution.values()), name


@pytest.mark.parametrize("order", ORDERS)
def test_columns_that_saw_no_input_are_rounded_by_themselves(order: Order) -> None:
    weight, hessian = problem()
    dead = torch.tensor([0, 5, 100, 255])
    hessian[dead] = 0
    hessian[:, dead] = 0
    found = gptq.quantize(weight, get("int4-channel"), hessian=hessian, order=order)
    assert found.fallback is None
    grid, codes = MatrixGrid.unpacked(get("int4-channel"), torch.from_numpy(found.data), 256)
    assert torch.equal(codes[:, dead], grid.round(weight)[:, dead])


def test_inputs_that_are_all_zero_leave_plain_rounding() -> None:
    weight, _ = problem()
    found = gptq.quantize(weight, get("q4_0"), hessian=torch.zeros(256, 256))
    grid, codes = MatrixGrid.unpacked(get("q4_0"), torch.from_numpy(found.data), 256)
    assert torch.equal(codes, grid.round(weight))


def test_damping_rises_until_the_factor_exists() -> None:
    _, hessian = problem()
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(256)
    values = torch.linalg.eigvalsh(hessian)
    assert values[0] < 0
    factored = factor(hessian, damping=0.0001)
    assert factored is not None
    assert factored.damping > 0.0001


def test_a_hessian_that_cannot_be_mended_ends_in_rounding_with_the_reason() -> None:
    weight, hessian = problem()
    broken = hessian - 10 * hessian.diagonal().mean() * torch.ones(256, 256)
    found = gptq.quantize(weight, get("q4_k"), hessian=broken)
    assert found.fallback is not None
    assert "not positive definite" in found.fallback
    assert (found.data == rtn.quantize(weight, get("q4_k")).data).all()


def test_values_that_are_not_finite_are_refused_by_place() -> None:
    weight, hessian = problem()
    hessian[3, 7] = float("nan")
    with pytest.raises(FormatError, match="the Hessian is nan at row 3, column 7"):
        gptq.quantize(weight, get("q4_k"), hessian=hessian)
    weight[2, 9] = float("inf")
    with pytest.raises(FormatError, match="the weight at row 2, column 9 is inf"):
        gptq.quantize(weight, get("q4_k"), hessian=hessian)


def test_shapes_and_options_that_cannot_be_are_refused() -> None:
    weight, hessian = problem()
    with pytest.raises(ShapeError, match=r"Hessian of 256 columns must be \[256, 256\], got \(255, 255\)"):
        gptq.quantize(weight, get("q4_k"), hessian=hessian[1:, 1:])
    with pytest.raises(ShapeError, match="do not divide into blocks of 256"):
        gptq.quantize(weight[:, 1:], get("q4_k"), hessian=hessian[1:, 1:])
    with pytest.raises(ShapeError, match=r"a matrix \[out, in\], got shape \(256,\)"):
        gptq.quantize(weight[0], get("q4_k"), hessian=hessian)
    with pytest.raises(SchemeError, match="order must be one of natural, activation, groups, got 'random'"):
        gptq.quantize(weight, get("q4_k"), hessian=hessian, order="random")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(SchemeError, match="damping is a share of the mean diagonal, above 0 and at most 1, got 0"):
        gptq.quantize(weight, get("q4_k"), hessian=hessian, damping=0)


def test_arguments_are_never_written() -> None:
    weight, hessian = problem()
    copies = weight.clone(), hessian.clone()
    gptq.quantize(weight, get("q4_k"), hessian=hessian, order="groups")
    assert torch.equal(weight, copies[0])
    assert torch.equal(hessian, copies[1])


@pytest.mark.parametrize("name", ["q4_k", "int4-g128", "int8-tensor"])
@pytest.mark.parametrize("method", ["rtn", "gptq", "qronos", "gptaq", "foem", "best"])
def test_slabs_of_rows_never_change_the_bytes(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(rows=150)
    known = {"hessian": hessian, "cross": hessian * 0.95}
    given = {key: known[key] for key in (*METHODS[method].needs, *METHODS[method].uses) if key in known}
    whole = METHODS[method].function(weight, get(name), **given, threads=1)
    monkeypatch.setattr(matrix, "SLAB", 64 * weight.shape[1])
    slabs = METHODS[method].function(weight, get(name), **given, threads=1)
    np.testing.assert_array_equal(slabs.data, whole.data)
