"""Files that nobody trusts: opened whole or refused on purpose, within bounds."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError, TersorError, UnsupportedError
from tersor.graph.net import Net, attribute, constant, operator
from tersor.graph.placement.engines import ENGINES
from tersor.graph.placement.placing import place
from tersor.graph.simplify import simplified
from tersor.graph.writing.halved import halved

from .conftest import Drawing, by_name, images, mobilenet, numbers, onnx, operators, quantized, resnet, run

SCRIPT = Path(__file__).with_name("mutate_nets.py")


def small() -> Drawing:
    d = Drawing(1)
    y = d.norm(d.conv(d.input("x", ["batch", 3, 6, 6]), 3, 2, name="conv"), 2)
    return d.output(d.add("Relu", y, made="y"))


def linear() -> Drawing:
    d = Drawing(2)
    y = d.add("ReduceMean", d.add("Dropout", d.input("x", ["batch", 3, 6, 6])), axes=[2, 3])
    y = d.add("Gemm", d.add("Flatten", y), d.add("Transpose", d.weight(2, 3)), beta=0.5)
    y = d.add("Concat", d.norm(y, 2), d.add("MatMul", y, d.weight(2, 2)), axis=1, made="y")
    return d.output(y)


def parsed(d: Drawing, change: Callable[[Any], None] | None = None) -> Net:
    proto = d.proto()
    if change is not None:
        change(proto)
    return Net.parse(proto.SerializeToString(), "it.onnx")


def test_weights_that_are_listed_as_inputs_are_weights() -> None:
    """Files of IR version 3 had to list them."""

    def listed(proto: Any) -> None:
        for tensor in proto.graph.initializer:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    d = Drawing(3)
    made = d.add("Relu", d.conv(d.input("x", ["n", 32, 6, 6]), 32, 64), made="y")
    plain, older = parsed(d.output(made)), parsed(d, listed)
    assert [value.name for value in older.inputs] == [value.name for value in older.graph.inputs] == ["x"]
    batches = images(4, 32, 6, 6)
    for make in (lambda net: net, halved, lambda net: quantized(net, batches).net):
        first, second = make(plain), make(older)
        assert len(second.to_bytes()) == len(first.to_bytes())
        np.testing.assert_array_equal(run(second, {"x": batches[0]})["y"], run(first, {"x": batches[0]})["y"])


def test_a_file_is_opened_saved_and_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(resnet().proto().SerializeToString())
    net = Net.open(tmp_path / "a.onnx")
    assert net.name == "a"
    assert net.save(tmp_path / "b.onnx") == (tmp_path / "b.onnx").stat().st_size
    again = Net.open(tmp_path / "b.onnx")
    x = images(2, 3, 16, 16)[0]
    np.testing.assert_array_equal(run(net, {"x": x})["logits"], run(again, {"x": x})["logits"])
    assert [value.name for value in net.inputs] == ["x"]
    assert [value.name for value in net.outputs] == ["logits"]
    with pytest.raises(KeyError):
        net.value("nothing")
    assert net.value("logits") is net.outputs[0]


def test_a_copy_can_be_changed_alone() -> None:
    net = small().net()
    before, copy = net.to_bytes(), net.copy()
    copy.set_constant("c0", np.zeros((2, 3, 1, 1), np.float32))
    copy.new_constant("c1", np.ones(3))
    next(copy.nodes).name = "other"
    assert net.to_bytes() == before
    assert numbers(copy.value("c0")).shape == (2, 3, 1, 1)
    assert numbers(copy.value("c1_2")).tolist() == [1, 1, 1]


def test_attributes_and_constants_are_those_of_the_file_or_of_the_standard() -> None:
    nodes = by_name(small().net())
    assert list(attribute(nodes["conv"], "pads", None)) == [1, 1, 1, 1]
    assert attribute(nodes["conv"], "group", 1) == 1
    assert constant(nodes["conv"].inputs[0]) is None
    assert constant(None) is None
    assert operator(nodes["conv"]) == "Conv"


def test_weights_that_are_inputs_too_and_constants_in_nodes_are_weights() -> None:
    d = small()
    d.add("Constant", made="w", value=onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32)))
    d.add("Conv", "y", "w", made="z")
    d.input("c0", [2, 3, 3, 3])
    net = d.output("z").net()
    assert [value.name for value in net.inputs] == ["x"]
    assert "Constant" not in operators(net)
    assert constant(net.value("w")) is not None
    assert len(place(simplified(net), ENGINES["onnxruntime"]).integer) == 2


def test_functions_are_written_out() -> None:
    helper, d = onnx.helper, Drawing(1)
    d.domains["mine"] = 1
    kernel = d.constant(np.ones((2, 2, 1, 1)))
    d.add("Twice", d.input("x", ["batch", 2, 6, 6]), kernel, domain="mine", made="z")
    proto = d.output("z", shape=["batch", 2, 6, 6]).proto()
    body = [helper.make_node("Conv", ["a", "w"], ["b"]), helper.make_node("Add", ["b", "b"], ["c"])]
    proto.functions.append(helper.make_function("mine", "Twice", ["a", "w"], ["c"], body, proto.opset_import[:1]))
    net = Net.parse(proto.SerializeToString(), "it")
    assert operators(net) == {"Conv": 1, "Add": 1}
    x = images(1, 2, 6, 6)[0]
    np.testing.assert_allclose(run(net, {"x": x})["z"], 2 * np.repeat(x.sum(1, keepdims=True), 2, 1), atol=1e-5)
    assert place(simplified(net), ENGINES["onnxruntime"]).weights


# Loops and branches: what is inside stays float, and reads what it read


def branching(kind: str) -> Drawing:
    d = Drawing(3)
    helper, types = onnx.helper, onnx.TensorProto
    x = d.input("x", ["batch", 3, 6, 6])
    y = d.add("Relu", d.conv(x, 3, 4, name="before"), made="seen")
    kernel = d.weight(4, 4, 1, 1, name="kernel")
    info = helper.make_tensor_value_info
    inner = [helper.make_node("Conv", [y if kind == "If" else "carried", kernel], ["inner"], name="before")]
    inner.append(helper.make_node("Add", ["inner", y], ["left"], name=""))
    if kind == "If":
        other = helper.make_graph([helper.make_node("Neg", [y], ["right"])], "no", [],
                                  [info("right", types.FLOAT, None)])  # fmt: skip
        chosen = d.add("Greater", d.add("ReduceMax", x, keepdims=0), d.constant(0.0))
        body = helper.make_graph(inner, "yes", [], [info("left", types.FLOAT, None)])
        z = d.add("If", chosen, then_branch=body, else_branch=other)
    else:
        inner.append(helper.make_node("Identity", ["go"], ["on"]))
        body = helper.make_graph(
            inner, "body",
            [info("i", types.INT64, []), info("go", types.BOOL, []), info("carried", types.FLOAT, [None, 4, 6, 6])],
            [info("on", types.BOOL, []), info("left", types.FLOAT, [None, 4, 6, 6])],
        )  # fmt: skip
        z = d.add("Loop", d.constant(2, kind="int64"), "", y, body=body)
    d.conv(d.add("Add", z, d.conv(y, 4, 4)), 4, 2, made="y")
    return d.output("y", shape=["batch", 2, 6, 6])


@pytest.mark.parametrize("kind", ["If", "Loop"])
@pytest.mark.parametrize("engine", ENGINES)
def test_loops_and_branches_stay_float_by_name_and_read_what_they_did(kind: str, engine: str) -> None:
    made = quantized(branching(kind).net(), images(2, 3, 6, 6), engine=engine)
    assert [(kept.operator, kept.reason) for kept in made.placement.kept] == [("Conv", "inside a loop or branch")]
    assert made.placement.kept[0].node not in made.placement.integer
    x = images(1, 3, 6, 6, seed=3)[0]
    found = run(made.net, {"x": x})["y"]
    run(made.net, {"x": x}, optimized=True)
    (outer,) = (node for node in made.net.nodes if node.op_type == kind)
    (captured,) = {
        str(value.name)
        for graph in (each.value for each in outer.attributes.values())
        for node in graph
        if node.op_type == "Add"
        for value in node.inputs[1:]
    }
    assert captured == "seen"
    wanted = run(made.source, {"x": x})["y"]
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


# What is refused


def no_opset(proto: Any) -> None:
    del proto.opset_import[:]


def cycle(proto: Any) -> None:
    proto.graph.node[0].input[0] = "y"


def with_value(name: str, kind: int, size: int = 1) -> Callable[[Any], None]:
    def change(proto: Any) -> None:
        tensor = proto.graph.initializer.add()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend([size])

    return change


def twice_made(proto: Any) -> None:
    proto.graph.node[1].output[0] = proto.graph.node[0].output[0]


def renamed_input(proto: Any) -> None:
    proto.graph.node[0].input[0] = "elsewhere"


def huge(proto: Any) -> None:
    proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def negative(proto: Any) -> None:
    proto.graph.initializer[0].dims[:] = [-2, -3, 3, 3]


def short(proto: Any) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def other_type(proto: Any) -> None:
    proto.graph.initializer[0].data_type = onnx.TensorProto.DOUBLE


def unknown_operator(proto: Any) -> None:
    proto.graph.node[0].op_type = "Convolution"


def no_inputs(proto: Any) -> None:
    del proto.graph.node[0].input[:]


def sequence_input(proto: Any) -> None:
    element = proto.graph.input[0].type.tensor_type
    held = onnx.TypeProto()
    held.tensor_type.CopyFrom(element)
    proto.graph.input[0].type.sequence_type.elem_type.CopyFrom(held)
    node = onnx.helper.make_node("SequenceAt", ["x", "first"], ["item"])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(0), "first"))
    proto.graph.node[0].input[0] = "item"
    proto.graph.node.insert(0, node)


def opset_nine(proto: Any) -> None:
    proto.opset_import[0].version = 9


BROKEN: dict[str, tuple[Callable[[Any], None], type[TersorError], str]] = {
    "opset 9": (opset_nine, UnsupportedError, "opset 9 is older than 13, .*version_converter"),
    "no opset": (no_opset, UnsupportedError, "opset 0"),
    "a cycle": (cycle, FormatError, "not output of any previous|topolog"),
    "an unknown input": (renamed_input, FormatError, "elsewhere"),
    "a value made twice": (twice_made, FormatError, "SSA|twice|output"),
    "a weight of 2 to the 60": (huge, FormatError, "c0"),
    "a weight of negative size": (negative, FormatError, "c0"),
    "a weight without its end": (short, FormatError, "c0"),
    "a weight of another type": (other_type, FormatError, "c0"),
    "a weight that is not there": (with_value("more", 1, 9), FormatError, "more"),
    "an unknown operator": (unknown_operator, FormatError, "Convolution"),
    "an operator without inputs": (no_inputs, FormatError, "conv"),
    "an input that is no tensor": (sequence_input, UnsupportedError, "the input x is no tensor"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_net_is_refused_by_message(case: str) -> None:
    change, error, message = BROKEN[case]
    with pytest.raises(error, match=f"it.onnx: .*({message})"):
        parsed(small(), change)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 64, b"not a net", pickle.dumps({"a": print}), b"PK\3\4" + bytes(40), b"GGUF" + bytes(40),
     onnx.ModelProto().SerializeToString(), b"\xff" * 99],
)  # fmt: skip
def test_another_file_is_no_net(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(FormatError, match=r"net.onnx: not an ONNX file"):
        Net.open(tmp_path / "net.onnx")


def test_every_beginning_of_a_net_is_refused_or_a_net() -> None:
    data = small().proto().SerializeToString()
    opened = 0
    for length in range(len(data)):
        try:
            opened += bool(Net.parse(data[:length], "it"))
        except TersorError:
            continue
    assert opened <= 3  # the opset stands last: without it only a default is missing


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "net.onnx", tmp_path):
        with pytest.raises(MissingError, match="no such file"):
            Net.open(path)


def test_a_net_that_is_quantized_already_is_refused_wherever_it_is() -> None:
    made = quantized(small().net(), images(1, 3, 6, 6))
    with pytest.raises(UnsupportedError, match=r"has a QuantizeLinear .*take the float net"):
        Net.parse(made.net.to_bytes(), "it")
    d = small()
    d.constants |= {"codes": np.ones((2, 2, 1, 1), np.int8), "scale": np.array(0.1, np.float32)}
    d.add("Conv", "y", d.add("DequantizeLinear", "codes", "scale"), made="z")
    with pytest.raises(UnsupportedError, match="has a DequantizeLinear"):
        d.output("z").net()
    proto = branching("If").proto()
    inner = proto.graph.node[[node.op_type for node in proto.graph.node].index("If")].attribute[0].g
    inner.node[-1].op_type, inner.node[-1].domain = "QLinearAdd", "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedError, match="has a QLinearAdd"):
        Net.parse(proto.SerializeToString(), "it")


# Weights in other files


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through Linux's RLIMIT_AS")
@pytest.mark.parametrize(
    ("count", "more"), [(1200, []), pytest.param(5000, ["--run"], marks=pytest.mark.slow)], ids=["opened", "run"]
)
def test_every_mutant_is_opened_or_refused_on_purpose_within_bounds(
    count: int, more: list[str], tmp_path: Path
) -> None:
    """In a process of its own: onnx and ONNX Runtime are C++, which ends a process that it does not understand."""
    for name, drawing in (("a", small()), ("b", linear()), ("c", branching("If")), ("d", mobilenet())):
        (tmp_path / f"{name}.onnx").write_bytes(drawing.proto().SerializeToString())
    command = [sys.executable, "-W", "error", str(SCRIPT), str(tmp_path), str(count), "20261127", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert child.returncode == 0, child.stderr[-3000:]
    result = json.loads(child.stdout)
    assert result["opened"] + result["refused"] == count
    assert result["refused"] > count // 4
    assert result["opened"] > count // 20
    assert result["longest_s"] < 1.0
