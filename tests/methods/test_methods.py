"""Laws of every rounding method in the table, and of each by itself."""

from __future__ import annotations

import inspect

import pytest
import torch

from tersor.core.errors import SchemeError, ShapeError
from tersor.formats import get
from tersor.methods import METHODS, autoround, best, gptq, hqq, layer_error, output_error, qronos, rtn
from tersor.methods.solving import refine
from tersor.methods.solving.factor import damped, factor

FORMATS = (
    "q4_k",
    "q3_k",
    "q2_k",
    "q4_0",
    "q4_1",
    "iq4_xs",
    "mxfp4",
    "int4-g32-f16",
    "int3-g128-asym",
    "nf4",
    "nvfp4",
    "binary",
)

GAINS = {"q4_k": 0.98, "q2_k": 0.96, "q3_k": 0.97, "q4_1": 0.98, "int4-g32-f16": 0.985, "nvfp4": 0.993}
"""What is left of the error after one refit of the scales, at most; a wrong minimum or a stale gradient leaves more."""


def problem(rows: int = 24, columns: int = 256) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, the Hessian of inputs that depend on each other, and the cross matrix with a disturbed copy of them."""
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=rng)
    mixed = torch.eye(columns) + 0.5 * torch.randn(columns, columns, generator=rng) / columns**0.5
    full = torch.randn(4 * columns, columns, generator=rng) @ mixed
    seen = full + 0.1 * torch.randn(full.shape, generator=rng) + 0.05 * full.roll(1, dims=1)
    return weight, seen.T @ seen / len(seen), full.T @ seen / len(seen)


@pytest.mark.parametrize("name", METHODS)
def test_needs_are_the_arguments_without_default(name: str) -> None:
    parameters = inspect.signature(METHODS[name].function).parameters.values()
    required = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    assert METHODS[name].needs == required
    assert set(METHODS[name].uses) <= {p.name for p in parameters}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_bytes_twice_and_writes_to_no_argument(name: str) -> None:
    weight, hessian, cross = problem()
    given = {"hessian": hessian, "cross": cross}
    needs = {need: given[need] for need in METHODS[name].needs}
    copies = [tensor.clone() for tensor in (weight, hessian, cross)]
    first, second = (METHODS[name].function(weight, get("q4_k"), threads=k, **needs) for k in (1, 2))
    assert (first.data == second.data).all()
    assert first.fallback is None
    for tensor, copy in zip((weight, hessian, cross), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["gptq", "best"])
def test_refinement_never_raises_the_error(name: str, fmt: str) -> None:
    weight, hessian, _ = problem()
    factored = factor(hessian)
    assert factored is not None
    found = gptq.solve(weight, get(fmt), factored, order="activation")
    matrix = refine.coupling(factored.hessian)
    grid, codes, last = found.grid, found.codes, output_error(weight, found.values(), factored.hessian)
    for _ in range(3):
        grid = refine.rescaled(weight, grid, codes, factored.hessian)
        packed, _codes = type(grid).unpacked(get(fmt), grid.pack(codes), 256)
        assert torch.equal(packed.values(codes), grid.values(codes)), "scales are not those that are stored"
        error = output_error(weight, grid.values(codes), factored.hessian)
        assert error <= last * (1 + 1e-5)
        codes = refine.descended(weight, grid, codes, matrix)
        last = output_error(weight, grid.values(codes), factored.hessian)
        assert last <= error * (1 + 1e-5)
    assert last < output_error(weight, found.values(), factored.hessian)


@pytest.mark.parametrize("fmt", GAINS)
def test_each_part_of_refitting_scales_is_worth_its_while(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, _ = problem(columns=768)
    factored = factor(hessian)
    assert factored is not None
    found = gptq.solve(weight, get(fmt), factored, order="activation")
    errors = []
    for lazy in (1, 512, 1024):
        monkeypatch.setattr(refine, "LAZY", lazy)
        grid = refine.rescaled(weight, found.grid, found.codes, factored.hessian)
        errors.append(output_error(weight, grid.values(found.codes), factored.hessian))
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-4)
    assert errors[0] < GAINS[fmt] * output_error(weight, found.values(), factored.hessian)


@pytest.mark.parametrize("fmt", FORMATS)
def test_best_is_better_than_gptq_and_gptq_than_rounding(fmt: str) -> None:
    weight, hessian, _ = problem()
    plain = rtn.quantize(weight, get(fmt), importance=hessian.diagonal())
    middle = gptq.quantize(weight, get(fmt), hessian=hessian)
    found = best.quantize(weight, get(fmt), hessian=hessian)
    errors = [layer_error(weight, q, hessian) for q in (found, middle, plain)]
    assert errors == sorted(errors)


def test_strength_0_and_equal_streams_are_plain_gptq() -> None:
    weight, hessian, cross = problem()
    plain = gptq.quantize(weight, get("q4_k"), hessian=hessian)
    off = qronos.quantize(weight, get("q4_k"), hessian=hessian, cross=cross, strength=0)
    equal = qronos.quantize(weight, get("q4_k"), hessian=hessian, cross=hessian)
    assert (off.data == plain.data).all()
    assert (equal.data == plain.data).all()


@pytest.mark.parametrize("name", ["qronos", "gptaq", "best"])
def test_what_is_corrected_beyond_the_format_is_cut_off(name: str) -> None:
    weight, hessian, cross = problem()
    fmt = get("nvfp4")
    weight *= 0.98 * fmt.largest / weight.abs().max()
    found = METHODS[name].function(weight, fmt, hessian=hessian, cross=cross * 3)
    assert abs(found.dequantize()).max() <= fmt.largest


@pytest.mark.parametrize("name", METHODS)
def test_a_matrix_without_rows_is_refused_and_statistics_in_double_are_taken(name: str) -> None:
    weight, hessian, cross = problem()
    given = {need: {"hessian": hessian, "cross": cross}[need].double() for need in METHODS[name].needs}
    assert METHODS[name].function(weight, get("q4_0"), **given).shape == weight.shape
    with pytest.raises(ShapeError, match="has no weights"):
        METHODS[name].function(weight[:0], get("q4_0"), **given)


def test_no_error_is_below_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    seen = torch.randn(256, 1, generator=rng)
    blind = torch.randn(64, 256, generator=rng)
    blind -= (blind @ seen) @ seen.T / float(seen.square().sum())
    errors = [output_error(row[None], torch.zeros(1, 256), seen @ seen.T) for row in blind]
    assert min(errors) >= 0


def test_the_correction_is_the_closed_form() -> None:
    weight, hessian, cross = problem()
    h = damped(hessian, 0.3).double()
    expected = weight.double() + 0.7 * weight.double() @ (cross - hessian).double() @ torch.linalg.inv(h)
    found = qronos.corrected(weight, hessian, cross, strength=0.7, trust=0.3)
    assert (found - expected).abs().max() < 1e-5 * weight.abs().max()
    residual = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    more = qronos.corrected(weight, hessian, cross, residual=residual, strength=0.7, trust=0.3)
    assert (more - expected - 0.7 * residual.double() @ torch.linalg.inv(h)).abs().max() < 1e-4


def test_the_correction_brings_outputs_nearer_to_the_full_model() -> None:
    weight, hessian, cross = problem()
    with_cross = qronos.quantize(weight, get("q4_k"), hessian=hessian, cross=cross, strength=1, trust=0.01)
    without = gptq.quantize(weight, get("q4_k"), hessian=hessian)
    errors = [layer_error(weight, q, hessian, cross=cross) for q in (with_cross, without)]
    assert errors[0] < errors[1]


def test_rows_never_know_of_each_other_in_best() -> None:
    weight, hessian, cross = problem(rows=40)
    whole = best.quantize(weight, get("q4_k"), hessian=hessian, cross=cross)
    part = best.quantize(weight[:7], get("q4_k"), hessian=hessian, cross=cross)
    assert (whole.data[:7] == part.data).all()


@pytest.mark.parametrize("fmt", ["q4_k", "int4-g128"])
def test_threads_never_change_the_bytes_of_best(fmt: str) -> None:
    weight, hessian, cross = problem(rows=70, columns=768)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            h, c = hessian.clone(), cross.clone()  # nothing remembered serves another thread count
            found.append(best.quantize(weight, get(fmt), hessian=h, cross=c, threads=threads))
    finally:
        torch.set_num_threads(before)
    assert all((other.data == found[0].data).all() for other in found[1:])


def test_best_takes_rounding_where_that_errs_less() -> None:
    weight, hessian, _ = problem()
    on_grid = torch.from_numpy(rtn.quantize(weight, get("q8_0")).dequantize())
    found = best.quantize(on_grid, get("q8_0"), hessian=hessian)
    assert layer_error(on_grid, found, hessian) <= layer_error(on_grid, rtn.quantize(on_grid, get("q8_0")), hessian)


def test_learned_rounding_is_better_than_rounding_and_takes_another_loss() -> None:
    weight, hessian, _ = problem()
    plain = rtn.quantize(weight, get("int4-g32"), importance=hessian.diagonal())
    found = autoround.quantize(weight, get("int4-g32"), hessian=hessian)
    assert layer_error(weight, found, hessian) < 0.85 * layer_error(weight, plain, hessian)

    def loss(values: torch.Tensor) -> tuple[float, torch.Tensor]:
        slope = (values - weight) * damped(hessian, 0.01).diagonal()
        return float(((values - weight) * slope).sum()), slope

    nearest = autoround.quantize(weight, get("int4-g32"), hessian=hessian, gradient=loss)
    assert (
        nearest.data == rtn.quantize(weight, get("int4-g32"), importance=damped(hessian, 0.01).diagonal()).data
    ).all()
    with pytest.raises(SchemeError, match="evenly spaced codes, which iq4_nl has not"):
        autoround.quantize(weight, get("iq4_nl"), hessian=hessian)


def test_hqq_makes_the_small_power_of_the_error_smaller() -> None:
    rng = torch.Generator().manual_seed(4)
    weight = torch.randn(32, 256, generator=rng) ** 3
    for fmt in ("q4_1", "int4-g32-asym", "q4_0"):
        robust, plain = hqq.quantize(weight, get(fmt)), rtn.quantize(weight, get(fmt))
        errors = [(weight - torch.from_numpy(q.dequantize())).abs().pow(0.7).sum() for q in (robust, plain)]
        assert errors[0] < errors[1], fmt


def test_options_out_of_range_are_refused() -> None:
    weight, hessian, cross = problem()
    with pytest.raises(SchemeError, match=r"strength lies between 0 and 1 and trust above 0, got 2 and 0\.3"):
        qronos.quantize(weight, get("q4_0"), hessian=hessian, cross=cross, strength=2)
    with pytest.raises(ShapeError, match=r"residual must have the weight's shape \(24, 256\), got \(24, 255\)"):
        qronos.quantize(weight, get("q4_0"), hessian=hessian, cross=cross, residual=weight[:, 1:])
    with pytest.raises(SchemeError, match="power lies above 0"):
        hqq.quantize(weight, get("q4_0"), power=0)
    with pytest.raises(SchemeError, match="at least one step, got 0"):
        autoround.quantize(weight, get("q4_0"), hessian=hessian, steps=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", METHODS)
def test_cuda_errs_no_more_than_the_processor(name: str, fmt: str) -> None:
    weight, hessian, cross = problem(rows=96)
    given = {"hessian": hessian, "cross": cross}
    needs = {need: given[need] for need in METHODS[name].needs}
    try:
        near = METHODS[name].function(weight, get(fmt), threads=1, **needs)
    except SchemeError:
        pytest.skip(f"{name} takes no {fmt}")
    far = METHODS[name].function(weight.cuda(), get(fmt), threads=1, **{k: v.cuda() for k, v in needs.items()})
    assert far.fallback == near.fallback
    errors = [layer_error(weight, found, hessian) for found in (near, far)]
    assert errors[1] <= 1.01 * errors[0]
