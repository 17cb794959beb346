"""Rewrites keep the function to their stated bounds, and make weights easier to round."""

from __future__ import annotations

import pytest
import torch

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.formats import get
from tersor.methods import output_error, rtn
from tersor.methods.rewrites import awq, rotation, smoothquant


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A producer [256, 64], a consumer [32, 256], and inputs of the producer; some outputs of it are large."""
    rng = torch.Generator().manual_seed(5)
    producer = torch.randn(256, 64, generator=rng) / 8
    producer[::37] *= 30
    return producer, torch.randn(32, 256, generator=rng), torch.randn(1000, 64, generator=rng)


def outputs(producer: torch.Tensor, consumer: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What both compute, in float64."""
    return inputs.double() @ producer.double().T @ consumer.double().T


def bound(producer: torch.Tensor, consumer: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Sum of the magnitudes of all products."""
    return outputs(producer.abs(), consumer.abs(), inputs.abs())


def test_scaling_keeps_the_function() -> None:
    producer, consumer, inputs = layer()
    hidden = inputs @ producer.T
    hessian = hidden.T @ hidden / len(hidden)
    for scales in (
        awq.input_scales([consumer], get("int4-g32"), hessian=hessian),
        smoothquant.input_scales([consumer], largest_input=hidden.abs().amax(dim=0)),
    ):
        assert not torch.equal(scales, torch.ones_like(scales))
        moved = smoothquant.divided_outputs(producer, scales), smoothquant.scaled_columns(consumer, scales)
        error = (outputs(*moved, inputs) - outputs(producer, consumer, inputs)).abs()
        assert (error <= 2**-22 * bound(producer, consumer, inputs)).all()


def test_awq_lowers_the_output_error_and_never_raises_it() -> None:
    producer, consumer, inputs = layer()
    hidden = inputs @ producer.T
    hessian = hidden.T @ hidden / len(hidden)
    for name in ("int4-g32", "int3-g128", "q4_0"):
        scales = awq.input_scales([consumer], get(name), hessian=hessian)
        losses = []
        for s in (scales, torch.ones_like(scales)):
            packed = rtn.quantize(consumer * s, get(name), importance=hessian.diagonal() / s.square())
            losses.append(output_error(consumer, torch.from_numpy(packed.dequantize()) / s, hessian))
        assert losses[0] < losses[1]
    even = awq.input_scales([torch.ones(4, 32)], get("int4-g32"), hessian=torch.eye(32))
    assert torch.equal(even, torch.ones(32))


@pytest.mark.parametrize("name", ["int4-g32", "int3-g128", "q4_0"])
def test_awq_finds_about_as_much_as_trying_every_exponent(name: str) -> None:
    producer, consumer, inputs = layer()
    hidden = inputs @ producer.T
    hessian = hidden.T @ hidden / len(hidden)

    def loss(scales: torch.Tensor) -> float:
        packed = rtn.quantize(consumer * scales, get(name), importance=hessian.diagonal() / scales.square())
        return output_error(consumer, torch.from_numpy(packed.dequantize()) / scales, hessian)

    activation = hessian.diagonal().sqrt()
    share = (consumer.abs() / consumer.abs().amax(dim=1, keepdim=True)).mean(dim=0)
    losses = [loss(torch.ones(256))]
    for ratio in (k / 20 for k in range(1, 21)):
        for scales in (activation**ratio / share ** (1 - ratio), activation**ratio):
            losses.append(loss(scales / (scales.max() * scales.min()).sqrt()))
    found = loss(awq.input_scales([consumer], get(name), hessian=hessian))
    assert min(losses) * (1 - 1e-4) <= found <= min(losses) * 1.02
    assert found < losses[0] * 0.98


def test_smoothquant_evens_out_the_largest_values() -> None:
    producer, consumer, inputs = layer()
    largest = (inputs @ producer.T).abs().amax(dim=0)
    scales = smoothquant.input_scales([consumer], largest_input=largest)
    after = largest / scales
    assert torch.allclose(after, consumer.abs().amax(dim=0) * scales, rtol=1e-4)
    assert after.max() / after.median() < largest.max() / largest.median() / 3


@pytest.mark.parametrize("size", [1, 2, 256, 96, 7])
def test_a_rotation_is_orthogonal_and_keeps_the_function(size: int) -> None:
    signs = rotation.random_signs(size, seed=3)
    turn = rotation.rotation(signs)
    assert (turn @ turn.T - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-12
    rng = torch.Generator().manual_seed(5)
    producer, consumer = torch.randn(size, 64, generator=rng), torch.randn(32, size, generator=rng)
    inputs = torch.randn(50, 64, generator=rng)
    moved = rotation.rotated_outputs(producer, signs), rotation.rotated_inputs(consumer, signs)
    assert torch.allclose(moved[0].double(), turn @ producer.double(), atol=1e-6)
    assert torch.allclose(moved[1].double(), consumer.double() @ turn.T, atol=1e-6)
    error = (outputs(*moved, inputs) - outputs(producer, consumer, inputs)).abs()
    assert (error <= 2**-22 * bound(moved[0], moved[1], inputs)).all()


def test_a_rotation_spreads_an_outlier() -> None:
    weight = torch.zeros(4, 256)
    weight[:, 17] = 1
    turned = rotation.rotated_inputs(weight, rotation.random_signs(256))
    assert turned.abs().max() == pytest.approx(1 / 16)


def test_the_rotation_is_signs_and_the_matrix_of_sylvester() -> None:
    signs = rotation.random_signs(24, seed=1)
    small = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    hadamard = torch.kron(torch.eye(3, dtype=torch.float64), torch.kron(small, torch.kron(small, small)))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert torch.allclose(rotation.rotation(signs), hadamard / 8**0.5 * signs)


def test_awq_does_not_scale_beyond_what_the_format_holds() -> None:
    fmt = get("nvfp4")
    weight = 0.05 * torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 7] = fmt.largest / 2
    seen = torch.ones(256)
    seen[7] = 1e4  # so that scaling would be tried far up
    scales = awq.input_scales([weight], fmt, hessian=torch.diag(seen))
    assert float((weight * scales).abs().max()) <= fmt.largest


def test_columns_without_input_or_weight_keep_their_scale() -> None:
    weight, largest = torch.ones(4, 8), torch.ones(8)
    weight[:, 2], largest[5] = 0, 0
    scales = smoothquant.input_scales([weight], largest_input=largest * 4)
    assert scales[2] == scales[5] == 1
    assert scales[0] == 2


def test_what_does_not_fit_is_refused() -> None:
    weight = torch.ones(4, 8)
    with pytest.raises(ShapeError, match="8 columns need as many scales"):
        smoothquant.scaled_columns(weight, torch.ones(7))
    with pytest.raises(ShapeError, match="a producer of 4 outputs cannot be divided by 8 scales"):
        smoothquant.divided_outputs(weight, torch.ones(8))
    with pytest.raises(FormatError, match="largest inputs must be finite"):
        smoothquant.input_scales([weight], largest_input=torch.full((8,), float("nan")))
    with pytest.raises(ShapeError, match="weights and inputs differ"):
        smoothquant.input_scales([weight], largest_input=torch.ones(7))
    with pytest.raises(SchemeError, match="strength between 0 and 1, got 3"):
        smoothquant.input_scales([weight], largest_input=torch.ones(8), strength=3)
    with pytest.raises(SchemeError, match="at least one weight"):
        awq.input_scales([], get("q4_0"), hessian=torch.eye(8))
    with pytest.raises(ShapeError, match=r"8 columns need a rotation of 8, got one of \(4,\)"):
        rotation.rotated_inputs(weight, rotation.random_signs(4))
    with pytest.raises(SchemeError, match="at least one column, got 0"):
        rotation.random_signs(0)
