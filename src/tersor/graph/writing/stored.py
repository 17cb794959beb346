"""Integers among the constants of a graph, and the DequantizeLinear that decodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tersor.core.errors import UnsupportedError
from tersor.graph.net import STANDARD, Array, Net
from tersor.graph.scheme import Quantizer, Scheme
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = LazyModule("onnx_ir", "onnx")

__all__ = ["HALF_BITS", "allow_halves", "axis_of", "is_packed", "parameters", "put_before", "refuse_halves", "stored"]

HALF_BITS = 4
BLOCKS_OPSET, BEFORE_OPSET, IR_VERSION = 21, 20, 10
"""Of ONNX: the first with 4-bit integers and blocks, the last without, and the first file format with both."""


def is_packed(scheme: Scheme) -> bool:
    """Whether weights so rounded need what opset 21 brought: two to the byte, or blocks."""
    return scheme.bits <= HALF_BITS or scheme.block is not None


def refuse_halves(net: Net) -> None:
    """Raise UnsupportedError for a net whose opset cannot be raised to where 4-bit integers and blocks exist.

    From 20 on nothing changes its meaning: GroupNormalization, which does, is no valid operator before 21.
    """
    opset = net.model.opset_imports.get(_domain(net), 0)
    if opset < BEFORE_OPSET:
        raise UnsupportedError(
            f"{net.name}: opset {opset} has neither 4-bit integers nor blocks: export it for opset {BLOCKS_OPSET}, or "
            "convert it with onnx.version_converter"
        )


def allow_halves(net: Net) -> None:
    """Raise the opset of a net to where 4-bit integers and blocks exist; UnsupportedError as `refuse_halves`."""
    refuse_halves(net)
    domain = _domain(net)
    if net.model.opset_imports.get(domain, 0) < BLOCKS_OPSET:
        net.model.opset_imports[domain] = BLOCKS_OPSET
        net.model.ir_version = max(net.model.ir_version, IR_VERSION)


def _domain(net: Net) -> str:
    """Return the name under which a net imports the standard operators."""
    return next((name for name in STANDARD if name in net.model.opset_imports), "")


def stored(net: Net, name: str, codes: Array, quantizer: Quantizer, *, packed: bool = False) -> ir.Node:
    """Return the node that decodes stored codes; it stands nowhere yet.

    packed  codes of 4 bits and fewer lie two to the byte: engines that compute on integers want whole bytes
    """
    halves = packed and quantizer.scheme.bits <= HALF_BITS
    constant = net.new_constant(f"{name}_quantized", codes, ir.DataType.INT4 if halves else None)
    scale, zero = parameters(net, name, quantizer, ir.DataType.INT4 if halves else None)
    called = net.free_name(f"{constant.name}_dequantize")
    node = ir.node("DequantizeLinear", [constant, scale, zero], axis_of(quantizer), name=called)
    made = node.outputs[0]
    made.name, made.shape = net.free_name(f"{constant.name}_dequantized"), constant.shape
    made.type = ir.TensorType(ir.DataType.FLOAT)
    return node


def parameters(net: Net, name: str, quantizer: Quantizer, dtype: Any = None) -> tuple[ir.Value, ir.Value]:
    """Return scale and zero point as constants; `dtype` of the second, None: its own."""
    scale = net.new_constant(f"{name}_scale", quantizer.scale)
    return scale, net.new_constant(f"{name}_zero_point", quantizer.zero_point, dtype)


def axis_of(quantizer: Quantizer) -> dict[str, int]:
    """Return the attributes of QuantizeLinear and DequantizeLinear."""
    scheme = quantizer.scheme
    if scheme.axis is None:
        return {}
    return {"axis": scheme.axis} if scheme.block is None else {"axis": 1 - scheme.axis, "block_size": scheme.block}


def put_before(net: Net, node: ir.Node, place: int, decoder: ir.Node) -> None:
    """Let an operator read what a decoder makes."""
    net.graph.insert_before(node, [decoder])
    node.replace_input_with(place, decoder.outputs[0])
