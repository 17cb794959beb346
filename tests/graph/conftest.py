"""Nets built node by node, in milliseconds: what the tests of graphs are about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="runs them: pip install 'tersor[onnx]'")
pytest.importorskip("onnx_ir", reason="holds them: pip install 'tersor[onnx]'")

from tersor.graph.net import Net, constant  # noqa: E402
from tersor.graph.ptq import QuantizedNet, Recipe, quantize_net  # noqa: E402
from tersor.graph.sessions import Feeds, Session  # noqa: E402
from tersor.graph.weights import RoundedWeight  # noqa: E402
from tersor.graph.writing.qdq import bias_place  # noqa: E402

Array = npt.NDArray[Any]
Shape = Sequence[Any]

TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float16": 10, "float64": 11}


class Drawing:
    """A graph in the making: `add` appends an operator and returns the name of what it makes."""

    def __init__(self, seed: int = 0, *, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.domains: dict[str, int] = {}

    def input(self, name: str, shape: Shape | None, kind: str = "float32") -> str:
        self.inputs.append(onnx.helper.make_tensor_value_info(name, TYPES[kind], shape))
        return name

    def constant(self, values: Any, name: str | None = None, kind: str = "float32") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values, kind)
        return name

    def weight(self, *shape: int, name: str | None = None) -> str:
        """Return normal numbers that keep the size of what they multiply, over all axes but the first."""
        spread = math.sqrt(2 / max(math.prod(shape[1:]), 1)) if len(shape) > 1 else 0.2
        return self.constant(self.random.standard_normal(shape) * spread, name)

    def add(self, operator: str, *inputs: str, **more: Any) -> str:
        """more: attributes, `name` of the operator, `made` of what it makes, `outputs` for their number, `domain`"""
        place = len(self.nodes)
        count, made = more.pop("outputs", 1), str(more.pop("made", f"v{place}"))
        name = more.pop("name", f"{operator.lower()}{place}")
        names = [made, *(f"{made}_{number}" for number in range(1, count))]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), names, name=name, **more))
        return made

    def conv(self, value: str, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, **more: Any) -> str:
        group = more.get("group", 1)
        dims = more.pop("dims", 2)
        parts = [value, self.weight(outputs, inputs // group, *[kernel] * dims)]
        more.setdefault("pads", [kernel // 2] * 2 * dims)
        return self.add("Conv", *parts, *([self.weight(outputs)] if bias else []), **more)

    def norm(self, value: str, channels: int, **more: Any) -> str:
        draw = self.random.uniform
        numbers = [draw(0.5, 1.5, channels), draw(-0.5, 0.5, channels), draw(-0.5, 0.5, channels)]
        numbers.append(draw(0.3, 2.0, channels))
        return self.add("BatchNormalization", value, *(self.constant(each) for each in numbers), **more)

    def output(self, *names: str, shape: Shape | None = None, kind: str = "float32") -> Drawing:
        self.outputs += [onnx.helper.make_tensor_value_info(name, TYPES[kind], shape) for name in names]
        return self

    def proto(self) -> Any:
        weights = [onnx.numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        graph = onnx.helper.make_graph(self.nodes, "drawn", self.inputs, self.outputs, weights)
        imports = [onnx.helper.make_opsetid("", self.opset)]
        imports += [onnx.helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)  # shapes of outputs

    def net(self) -> Net:
        return Net.parse(self.proto().SerializeToString(), "drawn")


def images(*shape: int, seed: int = 1, count: int = 4) -> list[Array]:
    """Return batches of noise with some structure, float32."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for _ in range(count)]


def quantized(net: Net, batches: Sequence[Any], **recipe: Any) -> QuantizedNet:
    """Return a net rounded as it is, with integers wherever they can be: `corrections/` has its own tests."""
    plain = {
        "ranges": "minmax",
        "weights": "rtn",
        "equalize": False,
        "smooth": False,
        "biases": False,
        "products": True,
    }
    recipe = {**plain, **recipe}
    return quantize_net(net, batches, Recipe(**recipe), threads=1)


def run(net: Net, feeds: Feeds, *, optimized: bool = False, watched: Sequence[str] = ()) -> dict[str, Array]:
    return Session(net, watched, optimized=optimized, threads=1).run(feeds)


def sqnr(wanted: Array, got: Array) -> float:
    """Return the signal-to-noise ratio, decibels."""
    noise = float(np.square(wanted.astype(np.float64) - got).sum())
    return 10 * float(np.log10(max(float(np.square(wanted.astype(np.float64)).sum()), 1e-30) / max(noise, 1e-30)))


def numbers(value: Any) -> Array:
    """Return the numbers of a constant."""
    found = constant(value)
    assert found is not None, value
    return found


def operators(net: Net) -> dict[str, int]:
    """Return how often each operator is in a net."""
    found: dict[str, int] = {}
    for node in net.nodes:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def fused(net: Net, folder: Any) -> Mapping[str, int]:
    """Return the operators that ONNX Runtime really runs, by type."""
    import onnxruntime  # noqa: PLC0415 (skipped where it is not installed)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
    onnxruntime.InferenceSession(net.to_bytes(), options, providers=["CPUExecutionProvider"])
    proto = onnx.load(str(folder / "optimized.onnx"))
    found: dict[str, int] = {}
    for node in proto.graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def resnet(channels: int = 8, *, opset: int = 17) -> Drawing:
    """Two residual blocks, a strided one among them; ends in a pooling and a linear layer."""
    d = Drawing(3, opset=opset)
    x = d.input("x", ["batch", 3, 16, 16])
    x = d.add("Relu", d.norm(d.conv(x, 3, channels, bias=False), channels))
    x = d.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for inputs, outputs, stride in ((channels, channels, 1), (channels, 2 * channels, 2)):
        y = d.add("Relu", d.norm(d.conv(x, inputs, outputs, bias=False, strides=[stride] * 2), outputs))
        y = d.norm(d.conv(y, outputs, outputs, bias=False), outputs)
        if stride > 1:
            x = d.norm(d.conv(x, inputs, outputs, 1, bias=False, strides=[2, 2]), outputs)
        x = d.add("Relu", d.add("Add", y, x))
    x = d.add("Flatten", d.add("GlobalAveragePool", x))
    d.add("Gemm", x, d.weight(10, 2 * channels), d.weight(10), transB=1, made="logits")
    return d.output("logits", shape=["batch", 10])


def mobilenet(*, opset: int = 17) -> Drawing:
    """Inverted residuals with Clip to 0 … 6, as MobileNetV2 has them."""
    d = Drawing(4, opset=opset)
    zero, six = d.constant(0.0), d.constant(6.0)
    x = d.input("x", ["batch", 3, 16, 16])
    x = d.add("Clip", d.norm(d.conv(x, 3, 8, strides=[2, 2], bias=False), 8), zero, six)
    for outputs, stride in ((8, 1), (12, 2), (12, 1)):
        inputs = 8 if outputs == 8 or stride == 2 else 12
        y = d.add("Clip", d.norm(d.conv(x, inputs, 24, 1, bias=False), 24), zero, six)
        y = d.add("Clip", d.norm(d.conv(y, 24, 24, bias=False, group=24, strides=[stride] * 2), 24), zero, six)
        y = d.norm(d.conv(y, 24, outputs, 1, bias=False), outputs)
        x = d.add("Add", x, y) if stride == 1 and inputs == outputs else y
    x = d.add("Clip", d.norm(d.conv(x, 12, 32, 1, bias=False), 32), zero, six)
    x = d.add("Flatten", d.add("GlobalAveragePool", x))
    d.add("Gemm", x, d.weight(10, 32), d.weight(10), transB=1, made="logits")
    return d.output("logits", shape=["batch", 10])


def encoder(*, opset: int = 20, width: int = 32, hidden: int = 64) -> Drawing:
    """A table of embeddings, two feed-forward layers with a shortcut, a pooling, a Gemm, and a Conv of one place."""
    d = Drawing(7, opset=opset)
    ids = d.input("ids", ["batch", "length"], "int64")
    x = d.add("Gather", d.weight(256, width, name="words"), ids, name="take_words")
    x = d.add("Add", x, d.add("Gather", d.weight(8, width, name="few"), d.constant([1], kind="int64")))
    y = d.add("Add", d.add("MatMul", x, d.weight(width, hidden), name="up"), d.weight(hidden))
    y = d.add("Add", d.add("MatMul", d.add("Relu", y), d.weight(hidden, width), name="down"), d.weight(width))
    x = d.add("ReduceMean", d.add("Add", x, y), d.constant([1], kind="int64"), keepdims=0)
    x = d.add("Gemm", x, d.weight(width, width), d.weight(width), transB=1, name="pooler")
    x = d.add("Unsqueeze", d.add("Tanh", x), d.constant([2], kind="int64"))
    x = d.add("Conv", x, d.weight(width, width, 1), name="last")
    d.add("Flatten", x, made="made")
    return d.output("made", shape=["batch", width])


def sentences(count: int = 4, length: int = 6, *, seed: int = 0, batches: int = 1) -> list[Feeds]:
    """Ids that `encoder` takes."""
    random = np.random.default_rng(seed)
    return [{"ids": random.integers(0, 256, (count, length))} for _ in range(batches)]


def simulated(made: QuantizedNet, feeds: Feeds) -> dict[str, Array]:
    """Return what the integers of a net mean, by definition.

    Its float operators run one at a time, on what the placement says is rounded; there is no QuantizeLinear, no Relu
    that was removed and no fused operator anywhere.
    """
    placement, values = made.placement, dict(feeds)
    rounded: dict[str, Array] = {}
    for value in made.source.graph.initializers.values():
        values[str(value.name)] = numbers(value)
    others = {str(node.name): (place, bias) for node, place, bias in _other_biases(made)}
    for node in [None, *made.source.nodes]:
        if node is not None:
            name, proto = str(node.name), _proto(node)
            read = {
                key: rounded[key] if key in rounded and name in placement.activations[key].nodes else values[key]
                for key in proto.input
                if key
            }
            if name in others:
                place, bias = others[name]
                proto.input.extend([f"{name}_other"] * (place + 1 - len(proto.input)))
                proto.input[place] = f"{name}_other"
                read[f"{name}_other"] = bias
            if name in placement.tables:
                read[proto.input[0]] = made.tables[name].values
            if name in placement.weights and placement.precision.activations == "dynamic":
                values[proto.output[0]] = _at_run_time(read[proto.input[0]], made.weights[name])
                continue
            if name in placement.weights:
                source, weight = made.activations.get(proto.input[0]), made.weights[name]
                read[proto.input[1]] = weight.values
                own = read.get(proto.input[2]) if len(proto.input) > 2 else None
                if own is not None and own.ndim == 1 and placement.engine.rounds_bias and source is not None:
                    read[proto.input[2]] = _bias(own, source.scale * weight.quantizer.scale)
            values |= _alone(made.source, proto, read)
        for name, quantizer in made.activations.items():
            if name in values and name not in rounded:
                rounded[name] = quantizer.values(quantizer.codes(values[name]))
    names = [str(value.name) for value in made.source.outputs]
    return {
        name: rounded[name] if name in rounded and placement.activations[name].returned else values[name]
        for name in names
    }


def _at_run_time(x: Array, weight: RoundedWeight) -> Array:
    """Return a product by integers of x, rounded to its own range as the standard defines DynamicQuantizeLinear."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    steps = (scale * weight.quantizer.scale).astype(np.float32)
    made: Array = (codes @ weight.codes.astype(np.int64)).astype(np.float32) * steps
    return made


def _other_biases(made: QuantizedNet) -> list[tuple[Any, int, Array]]:
    """Return the operators that add biases in the place of their own, and as which input."""
    nodes = by_name(made.source)
    found = []
    for name, bias in made.biases.items():
        holder = bias_place(nodes[name])
        assert holder is not None
        found.append((*holder, bias.astype(np.float32)))
    return found


def _proto(node: Any) -> Any:
    import onnx_ir  # noqa: PLC0415 (skipped where it is not installed)

    return onnx_ir.to_proto(node)


def _bias(bias: Array, scale: Array) -> Array:
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return codes.astype(np.float32) * scale


def _alone(net: Net, proto: Any, inputs: Feeds) -> dict[str, Array]:
    """Run one operator of a net in ONNX Runtime."""
    import onnxruntime  # noqa: PLC0415 (skipped where it is not installed)

    made = [name for name in proto.output if name]
    infos = [onnx.helper.make_tensor_value_info(key, TYPES[x.dtype.name], x.shape) for key, x in inputs.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in made]
    graph = onnx.helper.make_graph([proto], "alone", infos, outputs)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in net.model.opset_imports.items()]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip(made, session.run(made, inputs), strict=True))


def by_name(net: Net) -> dict[str, Any]:
    return {str(node.name): node for node in net.nodes}
