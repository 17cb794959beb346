"""Fake quantization: the numbers of QuantizeLinear and DequantizeLinear, and the gradients of learned step size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tersor.graph.scheme import Quantizer, Scheme
from tersor.graph.training.fake import codes_of, fake_quantize, fake_quantize_bias, fake_quantize_weight, off_grid

from .conftest import onnx, run_onnx, torch

GRIDS = [(0, 0, 255), (37, 0, 255), (0, -128, 127), (-5, -128, 127), (128, 0, 255)]


def rounded_by_onnx(x: Any, scale: Any, zero: Any, axis: int | None) -> Any:
    """Return DequantizeLinear(QuantizeLinear(x)) as ONNX Runtime has it."""
    more = {} if axis is None else {"axis": axis}
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"], **more),
        make("DequantizeLinear", ["q", "s", "z"], ["y"], **more),
    ]
    info = [onnx.helper.make_tensor_value_info(name, 1, x.shape) for name in "xy"]
    numbers = [onnx.numpy_helper.from_array(value, name) for name, value in (("s", scale), ("z", zero))]
    graph = onnx.helper.make_graph(nodes, "g", info[:1], info[1:], numbers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return run_onnx(model, {"x": x})[0]


def spread(*shape: int, seed: int = 0) -> Any:
    """Return floats over and beyond a range, with ties between codes among them."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal(shape) * 20).astype(np.float32)
    x.reshape(-1)[::5] = np.round(x.reshape(-1)[::5] * 2) / 2 * np.float32(0.25)
    return x


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_activations_are_rounded_as_the_engine_rounds_them(grid: tuple[int, int, int]) -> None:
    x, step = spread(4, 50), np.float32(0.25)
    zero = np.array(grid[0], np.uint8 if grid[1] == 0 else np.int8)
    made = fake_quantize(torch.from_numpy(x), torch.tensor(0.25), torch.zeros(()), grid)
    np.testing.assert_array_equal(made.numpy(), rounded_by_onnx(x, np.array(step), zero, None))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_rounded_as_the_engine_decodes_them(bits: int) -> None:
    scheme = Scheme(bits, signed=True, symmetric=True, axis=1)
    x = spread(3, 4, 5, seed=bits)
    scales = np.random.default_rng(1).uniform(0.1, 3.0, 4).astype(np.float32)
    quantizer = Quantizer(scales, np.zeros(4, scheme.dtype), scheme)
    grid = (0, scheme.lowest, scheme.highest)
    made = fake_quantize_weight(torch.from_numpy(x), torch.from_numpy(scales), torch.zeros(4), grid, 1)
    codes = codes_of(torch.from_numpy(x), torch.from_numpy(scales), grid, 1)
    np.testing.assert_array_equal(codes.numpy(), quantizer.codes(x))
    np.testing.assert_array_equal(made.numpy(), quantizer.values(quantizer.codes(x)))
    if bits == 8:
        np.testing.assert_array_equal(made.numpy(), rounded_by_onnx(x, scales, np.zeros(4, np.int8), 1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_of_a_step_is_that_of_its_definition(grid: tuple[int, int, int]) -> None:
    """LSQ passes the gradient through the rounding: between the ends the rounding error is taken for constant."""
    torch.manual_seed(0)
    zero, low, high = grid
    x = torch.randn(3, 40, dtype=torch.float64) * 60
    weights = torch.randn_like(x)
    base, shift = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    (weights * fake_quantize(x, base, shift, grid)).sum().backward()
    step = float(base * math.exp(0.2))
    inside = (x / step > low - zero) & (x / step < high - zero)
    error = torch.round(x / step) - x / step

    def defined(shift: float) -> float:
        step = float(base) * math.exp(shift)
        steps = torch.where(inside, x / step + error, (x / step).clamp(low - zero, high - zero))
        return float((weights * steps * step).sum())

    slope = (defined(0.2 + 1e-6) - defined(0.2 - 1e-6)) / 2e-6
    scaled = slope / math.sqrt(x[0].numel() * max(high - zero, zero - low))
    assert float(shift.grad) == pytest.approx(scaled, rel=1e-6)


def test_the_gradient_of_a_value_ends_where_its_range_ends() -> None:
    x = torch.tensor([[-3.0, -0.9, 0.0, 3.9, 4.1, 50.0]], requires_grad=True)
    made: Any = fake_quantize(x, torch.tensor(1.0), torch.zeros(()), (1, 0, 5))
    made.sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 0, 0]]


def test_each_channel_of_a_weight_has_a_gradient_of_its_own() -> None:
    torch.manual_seed(0)
    weight, shift = torch.randn(3, 4), torch.zeros(3, requires_grad=True)
    made: Any = fake_quantize_weight(weight, torch.tensor([0.1, 0.2, 0.3]), shift, (0, -8, 7), 0)
    made[1].sum().backward()
    assert [bool(value) for value in shift.grad] == [False, True, False]


def test_a_bias_lies_on_the_step_of_the_sums() -> None:
    bias = torch.tensor([0.1234567, -3.0], requires_grad=True)
    steps = torch.tensor(0.01), torch.zeros(()), torch.tensor([0.1, 0.02]), torch.zeros(2)
    made = fake_quantize_bias(bias, *steps)
    step = (np.float32(0.01) * np.array([0.1, 0.02], np.float32)).astype(np.float32)
    np.testing.assert_array_equal(
        made.detach().numpy(), np.rint(bias.detach().numpy() / step).astype(np.float32) * step
    )
    (made * torch.tensor([2.0, 3.0])).sum().backward()
    assert bias.grad.tolist() == [2.0, 3.0]


def test_a_bias_beyond_int32_stays_as_it_is() -> None:
    bias = torch.tensor([1e9])
    assert torch.equal(
        fake_quantize_bias(bias, *(torch.tensor(v) for v in (1e-3, 0.0)), *(torch.tensor([v]) for v in (1e-3, 0.0))),
        bias,
    )


def test_what_is_off_the_grid_pulls_on_values_within_the_range_alone() -> None:
    x = torch.tensor([-1.3, -0.6, 0.1, 0.7, 0.8, 2.0], requires_grad=True)
    base, shift = torch.tensor(0.25), torch.zeros((), requires_grad=True)
    off = off_grid(x, base, shift, (0, -4, 3), None)
    torch.testing.assert_close(off.detach(), torch.tensor([0.0, -0.1, 0.1, -0.05, 0.0, 0.0]))
    off.square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, 2 * off.detach())
    assert shift.grad is None
