"""A net as an ONNX graph: opened from a file that nobody trusts, looked at, copied, saved whole.

Every pass of this folder takes a Net and returns a new one; the graph inside is never changed by others than the pass
that has just copied it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

__all__ = ["Array", "Net", "attribute", "constant"]

Array: TypeAlias = npt.NDArray[Any]

OLDEST_OPSET = 13
"""The first in which scales of QuantizeLinear may differ along an axis."""
LARGEST_BYTES = (1 << 31) - 1
"""A protobuf message cannot be larger; weights beyond it lie in files of their own."""


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
        _check_external(proto, name, folder)
        try:
            if folder is not None:
                onnx.load_external_data_for_model(proto, str(folder))
            onnx.checker.check_model(proto)
            model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError) as error:
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
        """What a caller gives: inputs that are no weights."""
        return [value for value in self.graph.inputs if value.name not in self.graph.initializers]

    @property
    def outputs(self) -> list[ir.Value]:
        """What a caller gets."""
        return list(self.graph.outputs)

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
        proto = ir.to_proto(self.model)
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

    def new_constant(self, name: str, values: Array, dtype: Any = None) -> ir.Value:
        """Add an initializer under that name, or under it with a number behind it, and return it."""
        taken, wanted, number = self.graph.initializers, name, 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        tensor = ir.tensor(np.asarray(values, order="C"), dtype=dtype, name=name)
        shape = ir.Shape(np.shape(values))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value


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


def _supported(model: ir.Model, name: str) -> ir.Model:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"{name}: opset {opset} is older than {OLDEST_OPSET}, the first whose scales differ by channel: export it "
            "again, or convert it with onnx.version_converter"
        )
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            raise UnsupportedError(
                f"{name}: has a {node.op_type} ({node.name}), so it is quantized: take the float net"
            )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def _check_external(proto: Any, name: str, folder: Path | None) -> None:
    """Refuse weights in files outside the folder of the net, and broken ones, before anything is read."""
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        where = told.get("location", "")
        if folder is None or not where:
            raise FormatError(f"{name}: the weight {tensor.name!r} lies in another file ({where or 'not named'})")
        size = inside(folder, where).stat().st_size
        try:
            offset, length = int(told.get("offset", 0)), int(told.get("length", size))
        except ValueError as error:
            raise FormatError(f"{name}: {tensor.name!r}: {error}") from error
        if offset < 0 or length < 0 or offset + length > size:
            raise FormatError(f"{name}: {tensor.name!r} lies at {offset} + {length} of {where}, which has {size} bytes")
