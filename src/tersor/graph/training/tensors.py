"""Numbers of an ONNX graph as torch tensors, and which of them are weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.errors import UnsupportedError
from tersor.graph.training.ops.arguments import torch_type
from tersor.graph.training.ops.table import OPS, Operator
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor
else:
    ir, torch = LazyModule("onnx_ir", "onnx"), LazyModule("torch", "torch")

__all__ = ["constants", "is_state", "is_trained", "to_ir", "to_torch_tensor"]

LARGEST_WEIGHT = 1e30
"""Larger numbers, and infinite ones, are masks."""


def to_torch_tensor(tensor: ir.TensorProtocol, name: str) -> Tensor:
    """Return a copy as the torch type that holds its values; UnsupportedError where none does."""
    dtype = torch_type(int(tensor.dtype))
    if dtype is None:
        raise UnsupportedError(
            f"{name}: torch has no type for {tensor.dtype.name}; cast it to float32 in the ONNX graph"
        )
    numbers = tensor.numpy()
    if tensor.dtype == ir.DataType.BFLOAT16:  # numpy knows the type only through a package
        return torch.from_numpy(numbers.view(np.int16).copy()).view(torch.bfloat16)
    wide = str(dtype).removeprefix("torch.")
    return torch.from_numpy(np.array(numbers.astype(wide), order="C"))


def to_ir(tensor: Tensor, like: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Return a tensor as ONNX keeps it, in the type of the one that it replaces."""
    wide = tensor.detach().cpu().contiguous()
    numbers = (wide.double() if wide.dtype == torch.bfloat16 else wide).numpy()
    return ir.tensor(numbers.astype(like.numpy().dtype), dtype=like.dtype, name=name)


def constants(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield name and numbers of everything that the graph knows by heart: initializers and Constant nodes."""
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise UnsupportedError(f"{name}: an initializer without numbers; load the graph with its external data")
        yield str(name), value.const_value
    for node in graph:
        if node.op_type == "Constant":
            yield str(node.outputs[0].name), _constant(node)


def _constant(node: ir.Node) -> ir.TensorProtocol:
    (attribute,) = node.attributes.values()
    if attribute.name == "value":
        return attribute.as_tensor()
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        raise UnsupportedError(
            f"Constant {node.name!r} has a {attribute.name}: text and sparse tensors cannot be trained on"
        )
    return ir.tensor(np.array(attribute.value, kinds[attribute.name]))


def is_trained(value: ir.Value, numbers: ir.TensorProtocol) -> bool:
    """Whether a constant is a weight: of floats, finite, and more than one, or one in a layer that has weights."""
    if numbers.dtype.name not in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"):
        return False
    if not any(_takes_weight(use.node, use.idx, numbers.size) for use in value.uses()):
        return False
    sizes = np.abs(numbers.numpy().astype(np.float64))
    return bool((sizes < LARGEST_WEIGHT).all())


def is_state(value: ir.Value) -> bool:
    """Whether a constant is changed by running the module: the statistics of a batch norm."""
    uses = list(value.uses())
    return any(use.node.op_type == "BatchNormalization" and use.idx >= 3 for use in uses)


def _takes_weight(node: ir.Node, place: int, elements: int) -> bool:
    row = OPS.get(node.op_type)
    if row is None or _input_name(row, place) in (*row.inline, *row.state):
        return False
    if elements != 1 or row.layer:
        return True
    others = [other.producer() for other in node.inputs if other is not None]
    return node.op_type == "Add" and any(made is not None and made.op_type == "MatMul" for made in others)


def _input_name(row: Operator, place: int) -> str:
    if isinstance(row.function, str):
        return ""
    names = row.function.__code__.co_varnames[: row.function.__code__.co_argcount]
    return names[place] if place < len(names) else ""
