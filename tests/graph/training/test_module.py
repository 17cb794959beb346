"""Whole nets: the module computes what the graph and the net it came from compute, and learns as that net does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from tersor.graph.training.module import to_onnx_weights, to_torch

from ..conftest import Drawing
from ..conftest import resnet as drawn_resnet
from .conftest import ir, one_operator, onnx, run_onnx, run_torch, torch
from .nets import NETS, exported, made

AGREEMENT = 2e-5
"""Share of the largest output: some dozen layers of sums in another order."""


@pytest.fixture(scope="module", params=list(NETS))
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """Net, its graph, and what draws a batch."""
    net, draw = made(request.param)
    return net, exported(net, draw(2)), draw


def numbers_of(model: Any) -> dict[str, Any]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def close(ours: Any, theirs: Any, share: float = AGREEMENT) -> bool:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() <= share * max(np.abs(theirs).max(), 1e-3))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_net_computes_what_its_graph_computes_for_any_batch(pair: tuple[Any, Any, Any], batch: int) -> None:
    _, model, draw = pair
    feeds = {str(model.graph.inputs[0].name): draw(batch).numpy()}
    module = to_torch(model).eval()
    assert close(run_torch(module, feeds)[0], run_onnx(model, feeds)[0])


def test_parameters_keep_their_names_and_values(pair: tuple[Any, Any, Any]) -> None:
    net, model, _ = pair
    ours, theirs = dict(to_torch(model).named_parameters()), dict(net.named_parameters())
    initializers = set(model.graph.initializers)
    kept = {name for name in theirs if name in initializers}
    assert kept
    assert kept <= set(ours)
    for name in kept:
        np.testing.assert_array_equal(ours[name].detach().numpy(), numbers_of(model)[name])


def test_gradients_are_those_of_the_net(pair: tuple[Any, Any, Any]) -> None:
    net, model, draw = pair
    module, x = to_torch(model).eval(), draw(3)
    net.zero_grad()
    net(x).square().sum().backward()
    module(x).square().sum().backward()
    theirs = dict(net.named_parameters())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        folded = name not in theirs or not torch.equal(parameter, theirs[name])
        if not folded:
            assert close(parameter.grad, theirs[name].grad, 1e-4), name


def test_weights_return_to_the_graph(pair: tuple[Any, Any, Any]) -> None:
    _, model, draw = pair
    module, x = to_torch(model).eval(), draw(2)
    before = {name: numbers.copy() for name, numbers in numbers_of(model).items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    feeds = {str(model.graph.inputs[0].name): x.numpy()}
    written = to_onnx_weights(module, model)
    assert close(run_torch(module, feeds)[0], run_onnx(written, feeds)[0])
    assert not close(run_onnx(written, feeds)[0], run_onnx(model, feeds)[0])
    for name, numbers in numbers_of(model).items():
        np.testing.assert_array_equal(numbers, before[name])


def test_a_copy_is_a_net_of_its_own(pair: tuple[Any, Any, Any]) -> None:
    _, model, draw = pair
    module, x = to_torch(model).eval(), draw(2)
    wanted = module(x)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), wanted)
    assert list(twin.state_dict()) == list(module.state_dict())
    module.load_state_dict(twin.state_dict())
    assert torch.equal(module(x), wanted)


def test_an_encoder_without_optimization_by_the_exporter_works_too() -> None:
    net, draw = made("encoder")
    model = exported(net, draw(2), optimize=False)
    module, x = to_torch(model).eval(), draw(3)
    assert close(module(x).detach(), net(x).detach())


def test_batch_norms_learn_statistics_in_training_and_use_them_at_rest() -> None:
    random = np.random.default_rng(0)
    numbers = [random.uniform(0.5, 1.5, 4).astype(np.float32) for _ in range(4)]
    x = torch.from_numpy(random.standard_normal((3, 4, 5, 2)).astype(np.float32))
    proto = one_operator("BatchNormalization", [x.numpy(), *numbers], {"momentum": 0.8, "epsilon": 1e-3}, constant=1)
    module = to_torch(ir.from_proto(proto))
    oracle = torch.nn.BatchNorm2d(4, 1e-3, 0.2)
    names = ("weight", "bias", "running_mean", "running_var")
    oracle.load_state_dict(dict(zip(names, map(torch.from_numpy, numbers), strict=True)), strict=False)
    for mode in (True, False, True):
        module.train(mode)
        oracle.train(mode)
        torch.testing.assert_close(module(x), oracle(x), rtol=1e-6, atol=1e-6)
    assert [name for name, _ in module.named_parameters()] == ["i1", "i2"]
    torch.testing.assert_close(module.get_buffer("i3"), oracle.running_mean)
    torch.testing.assert_close(module.get_buffer("i4"), oracle.running_var)
    written = to_onnx_weights(module, ir.from_proto(proto))
    np.testing.assert_array_equal(numbers_of(written)["i4"], module.get_buffer("i4").numpy())


def test_a_copy_in_training_mode_still_follows_its_own_mode() -> None:
    model = drawn_resnet().net().model
    module = copy.deepcopy(to_torch(model).train())
    x = torch.randn(4, 3, 16, 16)
    first, second = module(x), module.eval()(x)
    assert not torch.allclose(first, second)
    assert torch.equal(module(x), second)


def test_a_drawn_net_with_batch_norms_agrees_with_onnx_runtime() -> None:
    net = drawn_resnet().net()
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)}
    assert close(run_torch(to_torch(net.model).eval(), feeds)[0], run_onnx(net.model, feeds)[0])


def test_sizes_that_are_known_need_no_run_and_free_ones_do() -> None:
    d = Drawing()
    x = d.input("x", ["batch", 3, 4, 5])
    shape = d.add("Shape", x)
    channels = d.add("Gather", shape, d.constant([1], kind="int64"))
    rows = d.add("Slice", shape, *[d.constant(v, kind="int64") for v in ([2], [3], [0])])
    rest = d.add("Mul", channels, rows)
    batch = d.add("Gather", shape, d.constant([0], kind="int64"))
    d.add("Reshape", x, d.add("Concat", batch, rest, d.constant([-1], kind="int64"), axis=0), made="y")
    module = to_torch(d.output("y", shape=["batch", 12, 5]).net().model)
    assert module(torch.zeros(7, 3, 4, 5)).shape == (7, 12, 5)
    found = [node.meta["operator"] for node in module.graph.nodes if node.op == "call_function"]
    assert found == ["Shape", "Gather", "Concat", "Reshape"]


def test_a_name_that_a_module_cannot_have_gets_another_and_returns_under_its_own() -> None:
    names = ["train", "a", "a.b", "x..y", '/layer/"w"', "training", "graph"]
    d = Drawing()
    x = d.input("x", [2, 3])
    for name in names:
        x = d.add("Add", x, d.constant(np.full(3, 0.5), name))
    model = d.output(x, shape=[2, 3]).net().model
    module = to_torch(model)
    assert set(dict(module.named_parameters())) == {"train_", "a", "a_.b", "x._.y", "/layer/_w_", "training_", "graph_"}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    written = to_onnx_weights(module, model)
    for name in names:
        np.testing.assert_array_equal(numbers_of(written)[name], np.full(3, 1.5, np.float32))


def test_masks_bounds_and_single_numbers_are_not_trained() -> None:
    d = Drawing()
    x = d.input("x", [2, 3])
    x = d.add("Mul", x, d.constant([0.5], "factor"))
    x = d.add("Add", x, d.constant([0, -np.inf, 0], "mask"))
    x = d.add("Add", x, d.constant([0, 0, -3e38], "large mask"))
    x = d.add("Clip", x, d.constant(0.0, "low"))
    x = d.add("MatMul", x, d.constant(np.ones((3, 1)), "weight"))
    x = d.add("Add", x, d.constant([1.0], "bias"))
    module = to_torch(d.output(x, shape=[2, 1]).net().model)
    assert sorted(dict(module.named_parameters())) == ["bias", "weight"]
    asked = to_torch(d.net().model, trained=["factor"])
    assert list(dict(asked.named_parameters())) == ["factor"]


def test_weights_in_constant_nodes_are_trained_and_return() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    node = onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(weight))
    info, float_type = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node, onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g", [info("x", float_type, [1, 3])], [info("y", float_type, [1, 2])],
    )  # fmt: skip
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9))
    module = to_torch(model)
    with torch.no_grad():
        module.get_parameter("w").add_(1)
    feeds = {"x": np.ones((1, 3), np.float32)}
    np.testing.assert_array_equal(run_onnx(to_onnx_weights(module, model), feeds)[0], run_torch(module, feeds)[0])
    np.testing.assert_array_equal(run_onnx(model, feeds)[0], [[6.0, 9.0]])


def test_nodes_say_what_they_stand_for() -> None:
    module = to_torch(drawn_resnet().net().model)
    values = {node.meta.get("value") for node in module.graph.nodes}
    assert {"x", "v0", "logits"} <= values
    named = [node.meta for node in module.graph.nodes if node.meta.get("value") == "v0"]
    assert named == [{"node": "conv0", "operator": "Conv", "value": "v0"}]


@pytest.mark.slow
def test_a_module_compiles() -> None:
    net, draw = made("mobilenet")
    module = to_torch(exported(net, draw(2))).eval()
    x = draw(2)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(x), module(x))
