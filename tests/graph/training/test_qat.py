"""Prepared nets compute what the net on integers computes, before and after training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import QualityError, SchemeError
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet
from tersor.graph.training.convert import convert
from tersor.graph.training.module import to_torch
from tersor.graph.training.norms import freeze_norms
from tersor.graph.training.prepare import prepare

from ..conftest import Drawing, images, mobilenet, operators, quantized, resnet, run
from .conftest import torch
from .nets import exported, made

ROUNDING = 1e-5
"""Share of the largest value by which the order of a sum of a few hundred float32 numbers may move another one."""
SHAPE = (4, 3, 16, 16)


def small(name: str, **recipe: Any) -> tuple[QuantizedNet, Net]:
    """Return a net on integers and the one before."""
    drawn = {"resnet": resnet, "mobilenet": mobilenet}[name]()
    net = drawn.net()
    return quantized(net, images(*SHAPE), **recipe), net


def stir(module: Any, size: float = 0.03) -> None:
    """Move every parameter as training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def seen_by(module: Any, x: Any) -> dict[str, Any]:
    """Return what every fake quantizer of activations reads and makes, and its step, by value."""
    found: dict[str, Any] = {}

    class Watching(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, node: Any) -> Any:
            value = super().run_node(node)
            if node.meta.get("kind") == "activation":
                source, base, shift = (self.env[part] for part in node.args[:3])
                found[node.meta["site"]] = source, value, float(base * torch.exp(shift))
            return value

    with torch.no_grad():
        found[""] = Watching(module).run(x)
    return found


def check_equal(module: Any, converted: QuantizedNet, feeds: Any) -> int:
    """Compare the module with ONNX Runtime at every quantizer; return how many codes differ.

    Between two quantizers the two sum floats in different orders. A code may differ by one step, and only where the
    value is within ROUNDING of the middle between two codes; what comes behind such a place is not judged.
    """
    ours = seen_by(module, torch.from_numpy(feeds["x"]))
    names = {site: f"{site}_dequantized" for site in ours if site}
    there = set(converted.net.values())
    watched = {site: (name if name in there else site) for site, name in names.items()}
    theirs = run(converted.net, feeds, watched=list(watched.values()))
    for site, name in watched.items():
        source, value, step = ours[site]
        apart = np.rint((theirs[name] - value.numpy()) / step)
        if not apart.any():
            continue
        assert np.abs(apart).max() == 1, site
        middle = np.abs(np.abs((source.numpy() / step) % 1) - 0.5)
        assert (middle[apart != 0] <= ROUNDING * np.abs(source.numpy() / step).max()).all(), site
        return int(np.count_nonzero(apart))
    (output,) = converted.net.outputs
    wanted = theirs[str(output.name)]
    assert np.abs(ours[""].numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
    return 0


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt", "xnnpack"])
def test_a_prepared_net_computes_what_the_net_on_integers_computes(name: str, bits: int, engine: str) -> None:
    start, _ = small(name, bits=bits, engine=engine)
    module = prepare(start).eval()
    check_equal(module, start, {"x": images(*SHAPE, seed=7)[0]})


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt", "xnnpack"])
def test_a_converted_net_computes_what_the_trained_module_computes(name: str, bits: int, engine: str) -> None:
    start, _ = small(name, bits=bits, engine=engine)
    module = prepare(start)
    stir(module)
    differing = sum(
        check_equal(module.eval(), convert(module, start), {"x": batch}) for batch in images(*SHAPE, seed=8, count=3)
    )
    assert differing <= 3


def test_codes_of_weights_are_those_of_training() -> None:
    start, _ = small("resnet", bits=4)
    module = prepare(start)
    stir(module)
    converted = convert(module, start)
    rounded = {}

    class Watching(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, node: Any) -> Any:
            value = super().run_node(node)
            if node.meta.get("kind") == "weight":
                rounded[node.meta["site"]] = value.detach().numpy()
            return value

    Watching(module.eval()).run(torch.zeros(SHAPE))
    assert set(rounded) == set(converted.weights)
    for node, weight in converted.weights.items():
        np.testing.assert_array_equal(weight.values, rounded[node])
        assert weight.codes.min() >= -8
        assert weight.codes.max() <= 7


def test_every_parameter_of_a_prepared_net_receives_a_gradient() -> None:
    start, _ = small("resnet", bits=4)
    module = prepare(start).train()
    module(torch.from_numpy(images(*SHAPE)[0])).square().sum().backward()
    without = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(bool(torch.any(parameter.grad != 0)) for parameter in module.parameters())


def test_inputs_that_share_a_grid_share_a_step() -> None:
    d = Drawing()
    x = d.input("x", ["batch", 3, 8, 8])
    x = d.add("Concat", d.conv(x, 3, 4), d.conv(x, 3, 4), axis=1)
    d.conv(x, 8, 2, made="y")
    start = quantized(d.output("y").net(), images(4, 3, 8, 8), engine="tensorrt")
    module = prepare(start)
    groups = {site.group for site in start.placement.activations.values()}
    steps = [name for name, _ in module.named_parameters() if name.startswith("quantizers") and ".shift" in name]
    assert len(steps) == len(groups) + len(start.placement.weights)


def looped() -> Net:
    """Three convolutions with one weight and one bias, and another."""
    d = Drawing(4)
    x = d.add("Relu", d.conv(d.input("x", ["n", 3, 6, 6]), 3, 16))
    weight, bias = d.weight(16, 16, 3, 3, name="loop.weight"), d.weight(16)
    for _ in range(3):
        x = d.add("Relu", d.add("Conv", x, weight, bias, pads=[1, 1, 1, 1]))
    d.conv(x, 16, 2, 1, made="y")
    return d.output("y").net()


def test_a_weight_that_operators_share_stays_one() -> None:
    net, batches = looped(), images(4, 3, 6, 6)
    plain = quantized(net, batches, bits=4)
    module = prepare(plain)
    assert sum(parameter.numel() == 16 * 16 * 9 for parameter in module.parameters()) == 1
    stir(module)
    found = convert(module, plain)
    assert len({id(weight) for weight in found.weights.values()}) == 3
    assert len(found.net.to_bytes()) == len(plain.net.to_bytes())
    assert found.source.weight_bytes == plain.source.weight_bytes
    assert check_equal(module, found, {"x": batches[0]}) >= 0
    loops = [weight for name, weight in found.weights.items() if weight.codes.shape == (16, 16, 3, 3)]
    assert len(loops) == 3
    assert not np.array_equal(loops[0].codes, plain.weights["conv2"].codes)


def test_an_encoder_trains_and_returns() -> None:
    net, draw = made("encoder")
    source = Net(exported(net, draw(2)), "encoder")
    start = quantized(source, [draw(4).numpy() for _ in range(3)], bits=4)
    module = prepare(start).train()
    module(draw(3)).square().sum().backward()
    stir(module, 0.01)
    converted = convert(module, start)
    tokens = draw(3)
    ours, theirs = module.eval()(tokens).detach().numpy(), run(converted.net, {"tokens": tokens.numpy()})
    (wanted,) = theirs.values()
    assert np.abs(ours - wanted).max() <= 0.02 * np.abs(wanted).max()


def test_norms_are_trained_by_the_batch_until_they_are_frozen() -> None:
    start, before = small("resnet", bits=4, equalize=False)
    module = prepare(start, norms=before)
    plain, x = to_torch(before.model), torch.from_numpy(images(*SHAPE, seed=3)[0])
    names = {name for name, _ in plain.named_parameters()}
    assert names <= {name for name, _ in module.named_parameters()}
    buffers = [name for name, _ in plain.named_buffers() if dict(plain.named_buffers())[name].ndim == 1]
    kept = {name: module.get_buffer(name).clone() for name in buffers}
    at_rest = module.eval()(x)
    in_training = module.train()(x)
    assert not torch.allclose(at_rest, in_training)
    assert all(not torch.equal(module.get_buffer(name), kept[name]) for name in buffers)
    assert freeze_norms(module) == operators(before)["BatchNormalization"]
    assert freeze_norms(module) == 0
    assert torch.equal(module.train()(x), module.eval()(x))


def test_norms_in_training_normalize_as_the_float_net_does() -> None:
    """Without its roundings, a prepared net in training is the float net in training."""
    start, before = small("resnet", equalize=False, biases=False)
    module = prepare(start, norms=before).train()
    for node in list(module.graph.nodes):
        if "kind" in node.meta:
            node.replace_all_uses_with(node.args[0])
    module.recompile()
    plain, x = to_torch(before.model).train(), torch.from_numpy(images(*SHAPE, seed=3)[0])
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    for name, buffer in plain.named_buffers():
        if buffer.ndim == 1 and buffer.is_floating_point():
            torch.testing.assert_close(module.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


def test_norms_are_folded_when_a_net_is_converted() -> None:
    start, before = small("resnet", bits=4, equalize=False)
    module = prepare(start, norms=before).train()
    module(torch.from_numpy(images(*SHAPE, seed=3)[0]))
    stir(module)
    converted = convert(module, start)
    check_equal(module.eval(), converted, {"x": images(*SHAPE, seed=8)[0]})
    assert "BatchNormalization" not in operators(converted.net)


def test_a_channel_whose_norm_is_zero_stays_zero() -> None:
    drawn = resnet()
    gammas = [name for name, values in drawn.constants.items() if values.shape == (8,) and (values >= 0.5).all()]
    drawn.constants[gammas[0]][2] = 0
    net = drawn.net()
    start = quantized(net, images(*SHAPE), bits=4, equalize=False)
    module = prepare(start, norms=net).train()
    made = module(torch.from_numpy(images(*SHAPE)[0]))
    made.square().sum().backward()
    assert bool(torch.isfinite(made).all())
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in module.parameters())
    check_equal(module.eval(), convert(module, start), {"x": images(*SHAPE, seed=8)[0]})


def test_norms_of_a_net_that_was_equalized_are_refused() -> None:
    start, before = small("resnet", bits=4, equalize=True)
    with pytest.raises(SchemeError, match="equalize=False"):
        prepare(start, norms=before)


def test_norms_of_another_net_are_refused() -> None:
    start, _ = small("resnet")
    d = Drawing()
    d.norm(d.conv(d.input("x", ["batch", 3, 8, 8]), 3, 4, name="other"), 4, made="y")
    with pytest.raises(SchemeError, match="give the net that was quantized"):
        prepare(start, norms=d.output("y").net())


def test_a_weight_that_is_not_finite_is_not_written() -> None:
    start, _ = small("resnet")
    module = prepare(start)
    with torch.no_grad():
        next(module.parameters()).fill_(np.nan)
    with pytest.raises(QualityError, match="lower learning rate"):
        convert(module, start)


def test_converting_changes_neither_the_module_nor_the_start() -> None:
    start, _ = small("mobilenet", bits=4)
    module = prepare(start)
    stir(module)
    state, bytes_before = copy.deepcopy(module.state_dict()), start.net.to_bytes()
    convert(module, start)
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert start.net.to_bytes() == bytes_before


def test_a_copy_of_a_prepared_net_converts_too() -> None:
    start, _ = small("mobilenet", bits=4)
    module = prepare(start)
    stir(module)
    assert convert(copy.deepcopy(module), start).net.to_bytes() == convert(module, start).net.to_bytes()
