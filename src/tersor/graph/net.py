"""A net as an ONNX graph: opened from a file that nobody trusts, looked at, copied, saved whole.

Every pass of this folder takes a Net and returns a new one; the graph inside is never changed by others than the pass
that has just copied it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError, MissingError, UnsupportedError
from tersor.files.atomic import atomic_writer
from tersor.files.checkpoint import inside
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common as passes
else:
    ir, onnx = LazyModule("onnx_ir", "onnx"), LazyModule("onnx", "onnx")
    passes = LazyModule("onnx_ir.passes.common", "onnx")

__all__ = ["Array", "Net", "attribute", "beside", "constant", "inner_nodes", "operator"]

Array: TypeAlias = npt.NDArray[Any]

OLDEST_OPSET = 13
"""The first in which scales of QuantizeLinear may differ along an axis."""
LARGEST_BYTES = (1 << 31) - 1
"""A protobuf message cannot be larger; weights beyond it lie in files of their own."""
STANDARD = ("", "ai.onnx")
"""Names of the domain whose operators the standard defines."""
INTEGER = re.compile(r"QLinear|QGemm|.*[Qq]uantizeLinear$|.*Integer(ToFloat)?$|.*QuantizeMatMul$|MatMulNBits")
"""Operators that only a net that is quantized already has."""


@dataclass(frozen=True, eq=False)
class Net:
    """An ONNX model; `name` is what messages and Cards call it."""

    model: ir.Model
    name: str = "net"

    @classmethod
    def open(cls, path: Path) -> Net:
        """Read a file; FormatError where it is broken, UnsupportedError where it is not what is handled here."""
        if not path.is_file():
            raise MissingError(f"{path}: no such file")
        if path.stat().st_size > LARGEST_BYTES:
            raise FormatError(f"{path}: larger than an ONNX file can be; keep weights as external data")
        return cls.parse(path.read_bytes(), path.name, folder=path.parent)

    @classmethod
    def parse(cls, data: bytes, name: str, *, folder: Path | None = None) -> Net:
        """Read the bytes of a file; weights that lie outside of it are looked for in `folder` only."""
        try:
            proto = onnx.ModelProto.FromString(data)
        except Exception as error:  # protobuf raises its own DecodeError, which is no part of its interface
            raise FormatError(f"{name}: not an ONNX file ({error})") from error
        if not proto.graph.node:
            raise FormatError(f"{name}: not an ONNX file, or one without a single node")
        _check_opset(proto, name)
        _check_external(proto, name, folder)
        try:
            if folder is not None:
                onnx.load_external_data_for_model(proto, str(folder))
            onnx.checker.check_model(proto)
            model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
            _make_plain(model)
            _check_weights(model)
        except Exception as error:  # of protobuf, of the checker, of shape inference, of the bindings: no common base
            raise FormatError(f"{name}: {' '.join(str(error).split())[:300]}") from error
        return cls(_supported(model, name), Path(name).stem)

    @property
    def graph(self) -> ir.Graph:
        """Nodes in an order in which they can run."""
        return self.model.graph

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """Nodes in an order in which they can run."""
        return iter(self.graph)

    @property
    def inputs(self) -> list[ir.Value]:
        """What a caller gives."""
        return list(self.graph.inputs)

    @property
    def outputs(self) -> list[ir.Value]:
        """What a caller gets."""
        return list(self.graph.outputs)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored numbers."""
        graphs = [self.model.graph, *self.model.graph.subgraphs()]
        held = [value.const_value for graph in graphs for value in graph.initializers.values()]
        return sum(int(tensor.nbytes) for tensor in held if tensor is not None)

    def value(self, name: str) -> ir.Value:
        """Return the value of that name; KeyError."""
        return self.values()[name]

    def values(self) -> dict[str, ir.Value]:
        """Every value by name: inputs, weights, and what nodes make."""
        found = {str(value.name): value for value in self.graph.inputs}
        found |= {str(name): value for name, value in self.graph.initializers.items()}
        found |= {str(value.name): value for node in self.graph for value in node.outputs if value.name}
        return found

    def copy(self) -> Net:
        """Return a net that can be changed; weights are shared until they are replaced."""
        return Net(self.model.clone(), self.name)

    def to_bytes(self) -> bytes:
        """Return the file as it would be saved; UnsupportedError beyond 2 GiB."""
        try:
            proto = ir.to_proto(self.model)
        except Exception as error:  # onnx_ir's own; names that are no text, for one
            raise FormatError(f"{self.name}: cannot be written as an ONNX file: {error.__cause__ or error}") from error
        if proto.ByteSize() > LARGEST_BYTES:
            raise UnsupportedError(f"{self.name}: {proto.ByteSize():,} bytes are more than one ONNX file can hold")
        data: bytes = proto.SerializeToString()
        return data

    def save(self, path: Path) -> int:
        """Write the file, which appears whole; return its bytes."""
        data = self.to_bytes()
        with atomic_writer(path) as file:
            file.write(data)
        return len(data)

    def set_constant(self, name: str, values: Array) -> None:
        """Put other numbers in the place of an initializer, of any shape and type."""
        tensor = ir.tensor(np.asarray(values, order="C"), name=name)
        self.graph.initializers[name].const_value = tensor
        self.graph.initializers[name].shape = ir.Shape(values.shape)
        self.graph.initializers[name].dtype = tensor.dtype

    @cached_property
    def _taken(self) -> set[str]:
        """Names that values and nodes have, those within loops and branches too: none may hide another."""
        nodes = [*self.graph, *inner_nodes(self.graph)]
        made = {str(value.name) for node in nodes for value in node.outputs}
        return set(self.values()) | made | {str(node.name) for node in nodes}

    def free_name(self, name: str) -> str:
        """Return that name, or it with a number behind it, which nothing has; it is taken from now on."""
        wanted, number = name, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def new_constant(self, name: str, values: Array, dtype: Any = None) -> ir.Value:
        """Add an initializer under that name, or under it with a number behind it, and return it."""
        name = self.free_name(name)
        tensor = ir.tensor(np.asarray(values, order="C"), dtype=dtype, name=name)
        shape = ir.Shape(np.shape(values))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def put_constant(self, node: ir.Node, place: int, values: Array, name: str, *, readers: int = 1) -> None:
        """Give an operator other numbers as an input: in the place of its own, as `name` where others read those.

        readers  how many may read them, all of which the caller gives the same numbers
        """
        old = node.inputs[place] if len(node.inputs) > place else None
        is_own = old is not None and len(old.uses()) == readers and not old.is_graph_output()
        if old is not None and is_own and str(old.name) in self.graph.initializers:
            self.set_constant(str(old.name), values)
            return
        if len(node.inputs) <= place:
            node.resize_inputs(place + 1)
        node.replace_input_with(place, self.new_constant(name, values))

    def replace(self, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
        """Put operators in the place of one; the first output of the last takes over its name and readers."""
        old, made = node.outputs[0], nodes[-1].outputs[0]
        made.shape, made.type = old.shape, old.type
        made.name, old.name = old.name, None
        self.graph.insert_before(node, nodes)
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def insert_behind(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Put operators that read a value where it has just been made; before all others where a caller gives it."""
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(next(iter(self.graph)), nodes)
        else:
            self.graph.insert_after(producer, nodes)


def constant(value: ir.Value | None) -> Array | None:
    """Return the numbers of a value that never changes; None where it does, or there is none."""
    if value is None or value.const_value is None:
        return None
    numbers: Array = value.const_value.numpy()
    return numbers


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return the value of an attribute, or what the standard says that it is without one."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def beside(numbers: Array, axis: int, rank: int) -> Array:
    """Return numbers, one for each place of an axis, in the shape in which they stand beside an array of that rank."""
    return numbers.reshape([-1 if place == axis else 1 for place in range(rank)])


def operator(node: ir.Node) -> str:
    """Return which operator of the standard a node is; of other domains "domain.operator", which is none of them."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def inner_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of the loops and branches of a graph, at any depth."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.graph is not graph:
            yield node


def _make_plain(model: ir.Model) -> None:
    """Put functions in the place of their calls, and constants among the weights, which are weights and no inputs.

    Older exporters list weights among the inputs, so that a caller can give others; then none could be rounded.
    """
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)


def _check_weights(model: ir.Model) -> None:
    """Look at every weight once: the checker does not compare sizes with shapes."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for value in [value for graph in graphs for value in graph.initializers.values()]:
        try:
            assert value.const_value is not None, "a weight without numbers"
            value.const_value.numpy()
        except Exception as error:
            raise ValueError(f"the weight {value.name!r} is broken: {error}") from error


def _supported(model: ir.Model, name: str) -> ir.Model:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if INTEGER.match(node.op_type):
            raise UnsupportedError(
                f"{name}: has a {node.op_type} ({node.name}), so it is quantized: take the float net"
            )
    for value in model.graph.inputs:
        if not isinstance(value.type, ir.TensorType):
            raise UnsupportedError(f"{name}: the input {value.name} is no tensor but {value.type}")
    return model


def _check_opset(proto: Any, name: str) -> None:
    opset = max((each.version for each in proto.opset_import if each.domain in STANDARD), default=0)
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"{name}: opset {opset} is older than {OLDEST_OPSET}, the first whose scales differ by channel: export it "
            "again, or convert it with onnx.version_converter"
        )


def _check_external(proto: Any, name: str, folder: Path | None) -> None:
    """Refuse weights in files outside the folder of the net, and broken ones, before anything is read."""
    whole = 0
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        where = told.get("location", "")
        if folder is None or not where:
            raise FormatError(f"{name}: the weight {tensor.name!r} lies in another file ({where or 'not named'})")
        try:
            size = inside(folder, where).stat().st_size
            offset, length = int(told.get("offset", 0)), int(told.get("length", size))
        except ValueError as error:
            raise FormatError(f"{name}: {tensor.name!r}: {error}") from error
        if offset < 0 or length < 0 or offset + length > size:
            raise FormatError(f"{name}: {tensor.name!r} lies at {offset} + {length} of {where}, which has {size} bytes")
        whole += length
    if whole > LARGEST_BYTES:
        raise UnsupportedError(f"{name}: {whole:,} bytes of weights are more than ONNX Runtime takes in one piece")


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor of a model, wherever it lies: weights, attributes, loops, branches, functions."""
    waiting = [message]
    while waiting:
        here = waiting.pop()
        if isinstance(here, onnx.TensorProto):
            yield here
            continue
        for field, held in here.ListFields():
            if field.message_type is not None:
                waiting += [held] if hasattr(held, "ListFields") else held
