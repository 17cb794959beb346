"""Each of torch's operators, as it is fed here, against sums in float64, within the roundings that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch

from tersor.core.errors import MissingError, SchemeError, ShapeError
from tersor.kernels.linear.by_torch import products
from tersor.kernels.linear.by_torch.products import DEQUANTIZED, PRODUCTS, choose, quantize_to_floats
from tersor.kernels.linear.by_torch.stored import Place, StoredWeight, place_of
from tersor.kernels.reference import linear as definition
from tersor.kernels.reference.linear import quantize_activations

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Matrix: TypeAlias = Callable[..., Arrays]
Activations: TypeAlias = Callable[..., torch.Tensor]
Integers: TypeAlias = Callable[..., StoredWeight]
DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
])]  # fmt: skip
TYPES = (torch.float32, torch.float16, torch.bfloat16)
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Half of the distance of neighbours, as a share."""
CPU = Place(torch.device("cpu"))


def cuda(major: int, minor: int) -> Place:
    """A GPU that is not here: rules are asked, nothing is run."""
    return Place(torch.device("cuda"), (major, minor))


@pytest.fixture(params=DEVICES)
def place(request: pytest.FixtureRequest) -> Place:
    return place_of(request.param)


@pytest.fixture
def integers(matrix: Matrix) -> Integers:
    def made(rows: int, columns: int, group: int, bits: int, *, symmetric: bool = True) -> StoredWeight:
        codes, zeros, scales = matrix(rows, columns, group, bits, symmetric=symmetric)
        return StoredWeight(codes, scales, zeros, bits)

    return made


def floats(rows: int, columns: int, *, one_scale: bool = False) -> StoredWeight:
    """A weight of eight-bit floats with the largest and the smallest of them in it."""
    rng = torch.Generator().manual_seed(rows + columns)
    values = torch.randn(rows, columns, generator=rng) * 40
    values[0, :4] = torch.tensor([448.0, -448.0, 2.0**-9, 0.0])
    scales = torch.rand(1 if one_scale else rows, 1, generator=rng) + 0.01
    return StoredWeight(values.to(torch.float8_e4m3fn), scales.expand(rows, 1).contiguous(), None, 8)


def exact(weight: StoredWeight) -> torch.Tensor:
    """The weight in float64, element by element as a checkpoint defines it."""
    groups = weight.codes.to(torch.float64).reshape(weight.rows, weight.groups, -1)
    zeros = 0 if weight.zeros is None else weight.zeros.to(torch.float64)[..., None]
    return ((groups - zeros) * weight.scales.to(torch.float64)[..., None]).reshape(weight.rows, weight.columns)


def run(name: str, weight: StoredWeight, x: torch.Tensor, place: Place) -> torch.Tensor:
    """The product on `place`, which has to take the weight, as it comes out."""
    product = PRODUCTS[name]
    assert product.refusal(weight, place) == ""
    return product.multiply(x.to(place.device), product.pack(weight, place.device)).cpu()


@pytest.mark.parametrize("tokens", [1, 6, 16, 17, 40])
@pytest.mark.parametrize("dtype", TYPES)
def test_int8_by_int8_is_the_product_of_our_own_kernels_bit_for_bit(
    integers: Integers, activations: Activations, place: Place, tokens: int, dtype: torch.dtype
) -> None:
    weight, x = integers(48, 96, 96, 8), activations(tokens, 96, dtype)
    assert weight.zeros is not None
    wanted = definition.multiply(x, weight.codes, weight.zeros, weight.scales, None, per_token=True)
    assert torch.equal(run("torch._int_mm", weight, x, place), wanted)


@pytest.mark.parametrize("tokens", [1, 16, 31, 32, 33])
def test_tokens_that_fill_a_batch_up_change_no_bit(
    integers: Integers, activations: Activations, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    weight, x = integers(16, 64, 64, 8), activations(tokens, 64)
    plain = run("torch._int_mm", weight, x, CPU)
    monkeypatch.setitem(products.ENOUGH_TOKENS, "cpu", 32)
    sizes: list[int] = []
    whole = torch._int_mm

    def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a))
        return whole(a, b)

    monkeypatch.setattr("tersor.kernels.linear.by_torch.products.torch._int_mm", counted)
    assert torch.equal(run("torch._int_mm", weight, x, CPU), plain)
    assert sizes == [max(tokens, 32)]


@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_floats_of_eight_bits_by_such_floats(
    activations: Activations, place: Place, dtype: torch.dtype, one_scale: bool
) -> None:
    weight, x = floats(48, 64, one_scale=one_scale), activations(7, 64, dtype)
    codes, steps = quantize_to_floats(x)
    left, right = codes.double() * steps.double(), exact(weight)
    made = run("torch._scaled_mm", weight, x, place)
    bound = 68 * UNIT[torch.float32] * (left.abs() @ right.abs().T) + UNIT[made.dtype] * (left @ right.T).abs()
    assert bool(((made.double() - left @ right.T).abs() <= bound).all())
    assert tuple(PRODUCTS["torch._scaled_mm"].pack(weight, place.device)["scales"].shape) == (1, 1 if one_scale else 48)


def test_activations_are_rounded_to_the_nearest_float_of_eight_bits() -> None:
    """As torch itself rounds x divided by a scale in float64, but where that lies within the error of the division."""
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 50)[:, None]
    codes, scale = quantize_to_floats(x)
    assert torch.equal(scale[:, 0], x.abs().amax(1) / torch.tensor(448.0))
    assert bool((codes.float().abs().amax(1) == 448).all())
    plain = x.double() / scale.double()
    error = (codes.double() - plain).abs()
    step = torch.maximum(plain.abs() * 2.0**-4, torch.tensor(2.0**-10))  # half of the distance of neighbours, at most
    assert bool((error <= step * (1 + 1e-5)).all())


def test_what_is_no_number_stays_with_its_token() -> None:
    x = torch.ones(4, 16)
    x[1, 3], x[2, 5], x[3] = torch.inf, torch.nan, 0
    codes, scale = quantize_to_floats(x)
    assert scale.isnan()[:, 0].tolist() == [False, True, True, False]
    assert scale[3] == 0
    for weight in (floats(16, 16), floats(16, 16, one_scale=True)):
        made = run("torch._scaled_mm", weight, x, CPU)
        assert made.isnan().all(1).tolist() == [False, True, True, False]
        assert bool((made[3] == 0).all())
    assert not codes.float().isnan().any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [48, 33])
def test_int8_by_activations_as_they_are(
    integers: Integers, activations: Activations, place: Place, dtype: torch.dtype, rows: int
) -> None:
    weight, x = integers(rows, 96, 96, 8), activations(6, 96, dtype)
    made, right = run("torch._weight_int8pack_mm", weight, x, place), exact(weight)
    bound = 99 * UNIT[torch.float32] * (x.double().abs() @ right.abs().T) + 1e-40
    assert bool(((made.double() - x.double() @ right.T).abs() <= bound).all())


@pytest.mark.parametrize("widths", [(64, 64), (96, 32), (256, 256), (384, 384), (512, 128), (768, 384)])
@pytest.mark.parametrize("kind", [(2, True), (3, False), (4, True), (4, False)])
def test_int4_by_activations_as_they_are(
    integers: Integers, activations: Activations, place: Place, widths: tuple[int, int], kind: tuple[int, bool]
) -> None:
    (columns, group), (bits, symmetric) = widths, kind
    weight, x = integers(32, columns, group, bits, symmetric=symmetric), activations(6, columns, torch.bfloat16)
    close_to_int4(run("torch._weight_int4pack_mm", weight, x, place), weight, x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_int4_in_the_type_of_other_devices(
    integers: Integers, activations: Activations, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setitem(products.INT4_TYPES, "cpu", dtype)
    weight, x = integers(32, 256, 64, 4, symmetric=False), activations(2, 256, torch.bfloat16)
    made = run("torch._weight_int4pack_mm", weight, x, CPU)
    assert made.dtype == getattr(torch, dtype)
    close_to_int4(made, weight, x)


def close_to_int4(made: torch.Tensor, weight: StoredWeight, x: torch.Tensor) -> None:
    """Compare with float64: scale and offset are rounded to the type of the product, and so is what comes out."""
    assert weight.zeros is not None
    unit, width, scales = UNIT[made.dtype], weight.columns // weight.groups, weight.scales.double()
    codes = weight.codes.double().reshape(weight.rows, weight.groups, width)
    offsets = (8 - weight.zeros.double()) * scales
    parts = ((codes - 8).abs() * scales[..., None] + offsets.abs()[..., None]).reshape(weight.rows, -1)
    wanted = x.double() @ exact(weight).T
    slack = (x.double().abs() @ parts.T) * (3 * unit + (weight.columns + 4) * UNIT[torch.float32]) + unit * wanted.abs()
    error = (made.double() - wanted).abs()
    assert bool((error <= slack + 1e-40).all())
    assert float((error / (wanted.abs().amax() + 1e-30)).max()) < 4 * unit * 16 + 1e-5  # and no bound of straw


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["int4", "int3", "odd", "int8", "float8"])
def test_decoding_takes_all_of_them(
    integers: Integers, activations: Activations, place: Place, dtype: torch.dtype, kind: str
) -> None:
    shapes = {"int4": (20, 48, 8, 4), "int3": (20, 48, 16, 3), "odd": (9, 33, 11, 4), "int8": (20, 48, 16, 8)}
    weight = floats(20, 48) if kind == "float8" else integers(*shapes[kind], symmetric=False)
    x = activations(2, weight.columns, dtype)
    made, right = run(DEQUANTIZED, weight, x, place), exact(weight)
    assert made.dtype == dtype
    bound = (x.double().abs() @ right.abs().T) * (2 * UNIT[dtype] + (weight.columns + 4) * 2.0**-23)
    assert bool(
        ((made.double() - x.double() @ right.T).abs() <= bound + UNIT[dtype] * (x.double() @ right.T).abs()).all()
    )


CHOICES = [
    # weight (rows, columns, group, bits; 0 bits: eight-bit floats), place, rounded → product
    ((48, 96, 96, 8), CPU, True, "torch._int_mm"),
    ((48, 96, 96, 8), CPU, False, "torch._weight_int8pack_mm"),
    ((48, 96, 96, 8), cuda(7, 5), True, "torch._int_mm"),
    ((44, 96, 96, 8), cuda(7, 5), True, "torch._weight_int8pack_mm"),
    ((48, 96, 96, 8), cuda(7, 0), True, DEQUANTIZED),
    ((48, 90, 90, 8), CPU, False, DEQUANTIZED),
    ((48, 96, 32, 8), CPU, True, DEQUANTIZED),
    ((48, 64, 64, 0), CPU, True, "torch._scaled_mm"),
    ((48, 64, 64, 0), CPU, False, DEQUANTIZED),
    ((48, 64, 64, 0), cuda(8, 9), True, "torch._scaled_mm"),
    ((48, 64, 64, 0), cuda(8, 6), True, DEQUANTIZED),
    ((40, 64, 64, 0), cuda(9, 0), True, DEQUANTIZED),
    ((48, 96, 32, 4), CPU, True, "torch._weight_int4pack_mm"),
    ((40, 96, 32, 4), CPU, True, DEQUANTIZED),
    ((40, 96, 32, 4), cuda(8, 0), True, "torch._weight_int4pack_mm"),
    ((36, 96, 32, 4), cuda(8, 0), True, DEQUANTIZED),
    ((40, 96, 32, 4), cuda(7, 5), True, DEQUANTIZED),
    ((48, 96, 16, 4), CPU, True, DEQUANTIZED),
    ((48, 96, 96, 2), CPU, True, "torch._weight_int4pack_mm"),
]


@pytest.mark.parametrize(("shape", "where", "rounded", "name"), CHOICES)
def test_the_operator_that_takes_a_weight_is_chosen(
    integers: Integers, shape: tuple[int, int, int, int], where: Place, rounded: bool, name: str
) -> None:
    weight = integers(*shape) if shape[3] else floats(*shape[:2])
    product, reason = choose(weight, where, rounded=rounded)
    assert product.name == name
    assert (name != DEQUANTIZED) or reason


def test_why_no_operator_takes_a_weight_is_told(integers: Integers) -> None:
    told = [
        (integers(36, 96, 32, 4), cuda(8, 0), "rows in steps of 8 and columns of 32, not 36 × 96"),
        (integers(48, 96, 96, 8), cuda(7, 0), "torch._int_mm: needs compute capability 7.5, the device has 7.0"),
        (integers(48, 96, 16, 4), CPU, "groups that are multiples of 32, not of 16"),
        (integers(48, 96, 96, 8, symmetric=False), CPU, "one scale a row, without zero points"),
        (floats(48, 64), Place(torch.device("mps")), "torch._scaled_mm: not tried on mps"),
        (floats(48, 64), Place(torch.device("cuda")), "torch._scaled_mm: not tried under ROCm"),
    ]
    for weight, where, message in told:
        product, reason = choose(weight, where, rounded=True)
        assert product.name == DEQUANTIZED
        assert message in reason


def test_activations_round_as_the_kernels_of_a_token_do(
    integers: Integers, activations: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `_int_mm` is given are the codes of `quantize_activations` over the whole token."""
    given: list[torch.Tensor] = []
    whole = torch._int_mm

    def seen(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        given.append(a)
        return whole(a, b)

    monkeypatch.setattr("tersor.kernels.linear.by_torch.products.torch._int_mm", seen)
    x = activations(6, 64)
    run("torch._int_mm", integers(16, 64, 64, 8), x, CPU)
    codes, _ = quantize_activations(x, 64, 1)
    assert codes.abs().amax() == 127
    assert [one.dtype for one in given] == [torch.int8]
    assert torch.equal(given[0], codes.to(torch.int8))


def test_places_that_are_not_there_are_named() -> None:
    assert place_of("cpu") == CPU
    with pytest.raises(SchemeError, match="torch knows no device 'gpu'"):
        place_of("gpu")
    with pytest.raises(SchemeError, match="holds no numbers"):
        place_of("meta")
    if not torch.backends.mps.is_available():
        with pytest.raises(MissingError, match="device mps is not available here"):
            place_of("mps")


def test_arrays_of_two_matrices_are_refused(integers: Integers) -> None:
    weight = integers(16, 64, 32, 4)
    with pytest.raises(ShapeError, match="no codes, scales and zeros of one matrix"):
        StoredWeight(weight.codes, weight.scales[:8], weight.zeros, 4)
    with pytest.raises(ShapeError, match="no codes, scales and zeros of one matrix"):
        StoredWeight(weight.codes, weight.scales, None, 4)
    with pytest.raises(ShapeError, match="no codes, scales and zeros of one matrix"):
        StoredWeight(weight.codes[:, :63], weight.scales, weight.zeros, 4)
