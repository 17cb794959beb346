"""Nets that hypothesis makes, through everything: simplified, placed, observed, rounded, written, run by engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tersor.graph.placement.engines import ENGINES, WITH_WEIGHTS
from tersor.graph.ptq import QuantizedNet

from .conftest import Array, Drawing, images, operators, quantized, run, simulated, sqnr

NETS = 50
ACTIVATIONS = ("Relu", "Relu6", "LeakyRelu", "Sigmoid", "HardSwish", "Tanh", "")
BLOCKS = ("conv", "depthwise", "grouped", "pointwise", "residual", "concat", "pool", "mean pool", "gate", "turn")


@dataclass
class Making:
    """A net in the making: what flows is [batch, channels, *sides]."""

    d: Drawing
    draw: Callable[[Any], Any]
    value: str
    channels: int
    sides: list[int]

    def conv(self, outputs: int, kernel: int, group: int = 1, stride: int = 1, value: str = "") -> str:
        dims = len(self.sides)
        more: dict[str, Any] = {"group": group, "strides": [stride] * dims, "dims": dims}
        made = self.d.conv(value or self.value, self.channels, outputs, kernel, bias=self.draw(st.booleans()), **more)
        return self.d.norm(made, outputs) if self.draw(st.booleans()) else made

    def active(self, value: str) -> str:
        known = [name for name in ACTIVATIONS if name != "HardSwish" or self.d.opset >= 14]
        name = self.draw(st.sampled_from(known))
        if name == "Relu6":
            return self.d.add("Clip", value, self.d.constant(0.0), self.d.constant(6.0))
        return self.d.add(name, value) if name else value

    def block(self) -> None:
        kind = self.draw(st.sampled_from(BLOCKS))
        getattr(self, "add_" + kind.replace(" ", "_"))()

    def add_conv(self) -> None:
        outputs = self.draw(st.integers(1, 9))
        stride = self.draw(st.sampled_from([1, 1, 2]))
        self.value = self.active(self.conv(outputs, self.draw(st.sampled_from([1, 3, 5])), stride=stride))
        self.channels, self.sides = outputs, [-(-side // stride) for side in self.sides]

    def add_depthwise(self) -> None:
        self.value = self.active(self.conv(self.channels, 3, self.channels))

    def add_grouped(self) -> None:
        group = 2 if self.channels % 2 == 0 else 1
        outputs = group * self.draw(st.integers(1, 4))
        self.value = self.active(self.conv(outputs, 3, group))
        self.channels = outputs

    def add_pointwise(self) -> None:
        outputs = self.draw(st.integers(1, 12))
        self.value, self.channels = self.active(self.conv(outputs, 1)), outputs

    def add_residual(self) -> None:
        other = self.active(self.conv(self.channels, 3))
        other = self.conv(self.channels, 3, value=other)
        self.value = self.active(self.d.add("Add", *self.draw(st.permutations([other, self.value]))))

    def add_concat(self) -> None:
        first, second = self.draw(st.integers(1, 4)), self.draw(st.integers(1, 4))
        parts = [self.active(self.conv(first, 1)), self.active(self.conv(second, 3))]
        size = first + second
        if self.draw(st.booleans()):
            parts, size = [*parts, self.value], size + self.channels
        self.value, self.channels = self.d.add("Concat", *parts, axis=1), size

    def add_pool(self) -> None:
        dims = len(self.sides)
        self.value = self.d.add("MaxPool", self.value, kernel_shape=[3] * dims, pads=[1] * 2 * dims)

    def add_mean_pool(self) -> None:
        if min(self.sides) >= 2:
            self.value = self.d.add("AveragePool", self.value, kernel_shape=[2] * len(self.sides))
            self.sides = [side - 1 for side in self.sides]

    def add_gate(self) -> None:
        mean = self.d.add("GlobalAveragePool", self.value)
        gate = self.d.add("Sigmoid", self.conv(self.channels, 1, value=mean))
        self.value = self.d.add("Mul", self.value, gate)

    def add_turn(self) -> None:
        if len(self.sides) == 2:
            self.value = self.d.add("Transpose", self.value, perm=[0, 1, 3, 2])
            self.sides.reverse()

    def finish(self) -> None:
        end = self.draw(st.sampled_from(["linear", "tokens", "conv", "as it is"]))
        if end == "linear":
            flat = self.d.add("Flatten", self.d.add("GlobalAveragePool", self.value))
            if self.draw(st.booleans()):
                self.value = self.d.add("Gemm", flat, self.d.weight(5, self.channels), self.d.weight(5), transB=1)
            else:
                self.value = self.d.add("Gemm", flat, self.d.weight(self.channels, 5))
        elif end == "tokens":
            flat = self.d.add("Reshape", self.value, self.d.constant([0, self.channels, -1], kind="int64"))
            tokens = self.d.add("Transpose", flat, perm=[0, 2, 1])
            made = self.active(self.d.add("Add", self.d.add("MatMul", tokens, self.d.weight(self.channels, 6)),
                                          self.d.weight(6)))  # fmt: skip
            self.value = self.d.add("MatMul", made, self.d.weight(6, 3))
        elif end == "conv":
            self.value = self.conv(3, 1)
        if self.value == "x":
            self.value = self.d.add("Relu", "x")
        self.d.output(self.value)


@st.composite
def drawings(draw: Any) -> tuple[Drawing, list[int]]:
    """Return a graph, and the shape of an item."""
    d = Drawing(draw(st.integers(0, 999)), opset=draw(st.sampled_from([13, 14, 17, 20])))
    shape = [draw(st.integers(1, 5)), *draw(st.lists(st.integers(3, 11), min_size=1, max_size=2))]
    making = Making(d, draw, d.input("x", ["batch", *shape]), shape[0], shape[1:])
    for _ in range(draw(st.integers(1, 6))):
        making.block()
    making.finish()
    return d, shape


def each_net(count: int = NETS) -> Callable[[Any], Any]:
    """Run a test on the same `count` nets in every run."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    def wrap(test: Any) -> Any:
        # without shrinking: that takes minutes, and a seed and a list of operators say enough
        bounds = settings(phases=[Phase.generate], max_examples=count, derandomize=True, deadline=None, database=None,
                          suppress_health_check=quiet)  # fmt: skip
        return bounds(given(made=drawings())(test))

    return wrap


def assert_nothing_is_silent(made: QuantizedNet) -> None:
    """Every operator with weights runs on integers, from stored integers, or is kept for a reason."""
    kept = {each.node: each.reason for each in made.placement.kept}
    assert all(kept.values())
    nodes = {str(node.name): node for node in made.net.nodes}
    for node in made.source.nodes:
        name = str(node.name)
        if node.op_type not in WITH_WEIGHTS:
            continue
        assert (name in made.placement.integer) != (name in kept)
        if name in made.placement.integer:
            sources = [value.producer() for value in nodes[name].inputs[:2] if value is not None]
            assert [source is not None and source.op_type for source in sources] == ["DequantizeLinear"] * 2
    assert not kept


def test_random_nets_are_their_definition_and_kernels_stay_near() -> None:
    """Without optimizations every bit is the definition's; kernels are within a step of the output, almost everywhere.

    The kernels of ONNX Runtime add integers exactly and round once, by the float32 product of the scales; the
    definition adds in float32 what those integers mean, k products with an error of at most k·ε·Σ|products|. A code
    differs only where a sum lies that near to a half, which is rare, and then by one. What reads it is off by one step
    of its input times one weight, which its own rounding makes nothing, or again one step as long as weights times
    steps of inputs are smaller than steps of outputs, as they are in sums of several products. Seen in 200 nets on a
    machine with VNNI: no code differs at all. Without VNNI x86 saturates pairs of products at 16 bits, and this fails.
    """
    ratios: list[float] = []

    @each_net()
    def check(made: tuple[Drawing, list[int]]) -> None:
        d, shape = made
        net = d.net()
        x = images(16, *shape, seed=7)[0]
        found = quantized(net, [x])
        assert_nothing_is_silent(found)
        (name,) = (str(value.name) for value in net.outputs)
        for batch in (1, 3):
            feeds = {"x": images(batch, *shape, seed=8)[0]}
            plain, fast = run(found.net, feeds)[name], run(found.net, feeds, optimized=True)[name]
            np.testing.assert_array_equal(plain, simulated(found, feeds)[name])
            assert_within_steps(found, name, plain, fast)
        ratios.append(sqnr(run(net, {"x": x})[name], run(found.net, {"x": x})[name]))

    check()
    assert len(ratios) >= NETS
    assert np.median(ratios) > 30
    assert np.quantile(ratios, 0.1) > FLOOR  # some nets put out hardly anything but zeros, which no rounding keeps


FLOOR = 20.0
"""Decibels, on what was calibrated with."""


def assert_within_steps(found: QuantizedNet, name: str, plain: Array, fast: Array) -> None:
    step = step_of(found, name, plain)
    off = np.abs(plain.astype(np.float64) - fast)
    assert off.max() <= 1.001 * step
    assert np.mean(off > step / 2) <= 0.02


def step_of(found: QuantizedNet, name: str, plain: Array) -> float:
    """Return the scale of an output; of one that is not rounded, what 8 bits would have."""
    if name in found.activations:
        return float(found.activations[name].scale)
    return float(max(plain.max(), 0) - min(plain.min(), 0)) / 255 or 1.0


@each_net(12)
def test_random_nets_are_their_definition_as_placed_for_every_engine(made: tuple[Drawing, list[int]]) -> None:
    d, shape = made
    net = d.net()
    for engine in ENGINES:
        options = {"ranges": "mse", "equalize": True, "biases": True, "products": True}
        found = quantized(net, images(4, *shape, count=1), engine=engine, **options)
        x = {"x": images(2, *shape, seed=7)[0]}
        for name, wanted in simulated(found, x).items():
            np.testing.assert_array_equal(run(found.net, x)[name], wanted)


@each_net(12)
def test_random_nets_without_calibrated_ranges_are_their_definition(made: tuple[Drawing, list[int]]) -> None:
    d, shape = made
    net, x = d.net(), {"x": images(2, *shape, seed=7)[0]}
    for engine, activations in (("onnxruntime", "dynamic"), ("onnxruntime", "float"), ("openvino", "float")):
        found = quantized(net, images(4, *shape, count=1), engine=engine, activations=activations)
        assert not found.activations
        for name, wanted in simulated(found, x).items():
            np.testing.assert_array_equal(run(found.net, x)[name], wanted)
            assert sqnr(run(net, x)[name], wanted) > FLOOR


@each_net(20)
def test_random_nets_run_in_openvino(made: tuple[Drawing, list[int]]) -> None:
    """On what was calibrated with: its pooling over all places wraps around where a mean is beyond its range (2026.4).

    It fuses sums and functions into roundings, and is then off by some steps of the output, on its own.
    """
    openvino = pytest.importorskip("openvino", reason="a second engine, if it is installed: pip install openvino")
    d, shape = made
    core = openvino.Core()
    for engine in ("onnxruntime", "openvino"):
        x = images(16, *shape, seed=7)[0]
        found = quantized(d.net(), [x], engine=engine)
        model = core.compile_model(core.read_model(found.net.to_bytes()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        (fast,) = model([x]).to_tuple()
        (plain,) = run(found.net, {"x": x}).values()
        assert sqnr(plain, fast) > FLOOR, (engine, operators(found.source))


CAPTURED = 3


@pytest.mark.slow
@settings(max_examples=CAPTURED, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 99), width=st.integers(2, 6), depth=st.integers(1, 3), side=st.integers(7, 13))
def test_random_nets_of_torch_go_the_whole_way(seed: int, width: int, depth: int, side: int) -> None:
    torch = pytest.importorskip("torch", reason="nets of torch: pip install 'tersor[torch]'")
    pytest.importorskip("onnxscript", reason="torch exports with it: pip install 'tersor[onnx]'")
    from tersor.graph.capture import capture  # noqa: PLC0415 (torch may be absent)

    torch.manual_seed(seed)
    nn = torch.nn
    parts: list[Any] = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)]
    for _ in range(depth):
        parts += [
            nn.Hardswish(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
        ]
        parts += [nn.Conv2d(width, width, 1), nn.GELU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)).eval()
    x = torch.randn(8, 3, side, side)
    captured = capture(net, x[:1])
    found = quantized(captured, [x.numpy()])
    assert_nothing_is_silent(found)
    name, source = str(captured.outputs[0].name), str(captured.inputs[0].name)
    made = run(found.net, {source: x.numpy()})[name]
    np.testing.assert_array_equal(made, simulated(found, {source: x.numpy()})[name])
    assert_within_steps(found, name, made, run(found.net, {source: x.numpy()}, optimized=True)[name])
    assert sqnr(net(x).detach().numpy(), made) > FLOOR
