"""The module that ExecuTorch lowers computes what the file computes, in the shape that XNNPACK takes whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet
from tersor.graph.writing.xnnpack import float_module, xnnpack_module

from ..conftest import Drawing, encoder, images, mobilenet, quantized, resnet, run, sentences, sqnr

torch = pytest.importorskip("torch", reason="nets as modules: pip install 'tersor[torch]'")


def perceptron() -> Net:
    """A Gemm and a MatMul with its Add."""
    d = Drawing(1, opset=21)
    x = d.input("x", ["batch", 64])
    y = d.add("Relu", d.add("Gemm", x, d.weight(128, 64), d.weight(128), transB=1))
    d.add("Add", d.add("MatMul", y, d.weight(128, 32)), d.weight(32), made="out")
    return d.output("out", shape=["batch", 32]).net()


def rows(made: QuantizedNet, given: Any) -> Any:
    """Run a net item by item: the range of a batch of one is that of its row."""
    return np.concatenate([run(made.net, {"x": given[place : place + 1]})["out"] for place in range(len(given))])


def targets(module: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            found.setdefault(getattr(node.target, "__name__", str(node.target)).split(".")[0], []).append(node)
    return found


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "encoder"])
def test_static_integers_are_those_of_the_file(name: str) -> None:
    if name == "encoder":
        made = quantized(encoder().net(), sentences(8, batches=2), engine="xnnpack")
        feeds = {"ids": sentences(4, seed=3)[0]["ids"]}
    else:
        drawn = {"resnet": resnet, "mobilenet": mobilenet}[name](opset=20)
        made = quantized(drawn.net(), images(4, 3, 16, 16), engine="xnnpack")
        feeds = {"x": images(4, 3, 16, 16, seed=5)[0]}
    module = xnnpack_module(made)
    (given,), (wanted,) = feeds.values(), run(made.net, feeds).values()
    found = module(torch.from_numpy(given)).numpy()
    # a code at the very middle between two may fall to either side: the order of a float sum decides
    assert sqnr(wanted, found) > 55
    used = targets(module)
    for decoder in (*used["dequantize_per_tensor"], *used["dequantize_per_channel"]):
        assert len(decoder.users) == 1, "every reader has a decoder of its own"
    assert not {"clip", "clamp", "relu", "gemm", "matmul"} & set(used), "rounding cuts off what they would"


@pytest.mark.parametrize("kind", [{}, {"bits": 4}, {"bits": 4, "group": 32}, {"bits": 3, "group": 64}])
def test_ranges_at_run_time_are_those_of_each_row(kind: dict[str, Any]) -> None:
    made = quantized(perceptron(), images(4, 64), engine="xnnpack", activations="dynamic", **kind)
    given = images(3, 64, seed=5)[0]
    module = xnnpack_module(made)
    assert sqnr(rows(made, given), module(torch.from_numpy(given)).numpy()) > 100
    used = targets(module)
    assert len(used["linear"]) == len(used["quantize_per_token"]) == 2
    group = "dequantize_per_channel_group" if "group" in kind else "dequantize_per_channel"
    ends = {node.args[3:5] if "group" in kind else node.args[4:6] for node in used[group]}
    assert ends == {(-8, 7) if kind else (-128, 127)}, "four bits are told, so that they are packed"


def test_scales_of_groups_fit_into_bfloat16() -> None:
    made = quantized(perceptron(), images(4, 64), engine="xnnpack", activations="dynamic", bits=4, group=32)
    for weight in made.weights.values():
        assert weight.quantizer.scale.ndim == 2
        assert not (weight.quantizer.scale.view(np.uint32) & 0xFFFF).any()


def test_odd_rows_of_four_bits_are_not_packed() -> None:
    d = Drawing(2, opset=21)
    d.add("MatMul", d.input("x", ["batch", 33]), d.weight(33, 8), made="out")
    made = quantized(
        d.output("out", shape=["batch", 8]).net(), images(4, 33), engine="xnnpack", activations="dynamic", bits=4
    )
    (decoder,) = targets(xnnpack_module(made))["dequantize_per_channel"]
    assert decoder.args[4:6] == (-128, 127)


def test_groups_that_an_engine_has_no_kernel_for_are_refused() -> None:
    four: dict[str, Any] = {"activations": "dynamic", "bits": 4}
    with pytest.raises(
        SchemeError, match="xnnpack takes weights for dynamic activations in groups of 32 or a multiple"
    ):
        quantized(perceptron(), images(4, 64), engine="xnnpack", group=16, **four)
    with pytest.raises(SchemeError, match="onnxruntime takes weights for dynamic activations in no groups"):
        quantized(perceptron(), images(4, 64), group=32, **four)


def test_a_net_for_another_engine_is_refused() -> None:
    made = quantized(perceptron(), images(4, 64))
    with pytest.raises(SchemeError, match="was quantized for onnxruntime: phones need the engine xnnpack"):
        xnnpack_module(made)


def test_a_clip_within_the_range_of_its_codes_stays() -> None:
    d = Drawing(3, opset=20)
    x = d.input("x", ["batch", 3, 8, 8])
    y = d.add("Clip", d.conv(x, 3, 4), d.constant(-0.25), d.constant(0.25))
    d.add("Add", y, d.conv(x, 3, 4), made="out")  # not alone on its grid: nothing tells its range but what was seen
    net = d.output("out", shape=["batch", 4, 8, 8]).net()
    made = quantized(net, images(4, 3, 8, 8), engine="xnnpack")
    module, given = xnnpack_module(made), images(2, 3, 8, 8, seed=5)[0]
    assert sqnr(run(made.net, {"x": given})["out"], module(torch.from_numpy(given)).numpy()) > 55


@pytest.mark.parametrize("half", [False, True])
def test_a_float_net_has_linear_layers(half: bool) -> None:
    net, given = perceptron(), images(3, 64, seed=5)[0]
    module: Any = float_module(net, half=half)
    found = module(torch.from_numpy(given))
    assert found.dtype == torch.float32
    assert sqnr(run(net, {"x": given})["out"], found.numpy()) > (55 if half else 120)
    assert len(targets(module.net if half else module)["linear"]) == 2
    kinds = {tensor.dtype for tensor in module.state_dict().values()}
    assert kinds == {torch.float16 if half else torch.float32}
