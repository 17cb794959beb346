"""Integers among the constants of a graph, and the DequantizeLinear that decodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tersor.core.errors import UnsupportedError
from tersor.graph.net import STANDARD, Array, Net
from tersor.graph.placement.sites import Placement
from tersor.graph.scheme import Quantizer, Scheme
from tersor.graph.weights import RoundedWeight
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = LazyModule("onnx_ir", "onnx")

__all__ = [
    "HALF_BITS",
    "allow_halves",
    "axis_of",
    "is_packed",
    "nbytes_of",
    "parameters",
    "put_before",
    "refuse_halves",
    "stored",
    "unpacks",
]

HALF_BITS = 4
BLOCKS_OPSET, BEFORE_OPSET, IR_VERSION = 21, 20, 10
"""Of ONNX: the first with 4-bit integers and blocks, the last without, and the first file format with both."""


def is_packed(scheme: Scheme) -> bool:
    """Whether weights so rounded need what opset 21 brought: two to the byte, or blocks."""
    return scheme.bits <= HALF_BITS or scheme.block is not None


def unpacks(placement: Placement, net: Net) -> bool:
    """Whether weights of 4 bits lie two to the byte in the file and become whole bytes when the engine loads it."""
    is_static = placement.precision.activations == "static"
    return is_static and placement.engine.unpacks and net.model.opset_imports.get(_domain(net), 0) >= BEFORE_OPSET


def nbytes_of(weight: RoundedWeight, placement: Placement, net: Net) -> int:
    """Return the bytes that a rounded weight takes in a file, scales included; zero points of zeros are not counted."""
    scheme = weight.quantizer.scheme
    is_decoded = placement.precision.activations == "float" or scheme.block is not None
    halves = scheme.bits <= HALF_BITS and (is_decoded or unpacks(placement, net))
    return -(-weight.codes.size // (2 if halves else 1)) + 4 * weight.quantizer.scale.size


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


def stored(
    net: Net, name: str, codes: Array, quantizer: Quantizer, *, packed: bool = False, unpacked: bool = False
) -> ir.Node:
    """Return the node that decodes stored codes; it stands nowhere yet.

    packed    codes of 4 bits and fewer lie two to the byte
    unpacked  and a Cast makes whole bytes of them, which engines that compute on integers want: once, when they load
              the file
    """
    is_small = quantizer.scheme.bits <= HALF_BITS
    halves = packed and is_small and not unpacked
    constant = net.new_constant(
        f"{name}_quantized", codes, ir.DataType.INT4 if (packed or unpacked) and is_small else None
    )
    if unpacked and is_small:
        constant = _whole(net, constant)
    scale, zero = parameters(net, name, quantizer, ir.DataType.INT4 if halves else None)
    called = net.free_name(f"{constant.name}_dequantize")
    node = ir.node("DequantizeLinear", [constant, scale, zero], axis_of(quantizer), name=called)
    made = node.outputs[0]
    made.name, made.shape = net.free_name(f"{constant.name}_dequantized"), constant.shape
    made.type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _whole(net: Net, halves: ir.Value) -> ir.Value:
    """Return what a Cast at the beginning of the graph makes of halves of bytes: whole ones."""
    cast = ir.node("Cast", [halves], {"to": int(ir.DataType.INT8)}, name=net.free_name(f"{halves.name}_unpack"))
    made = cast.outputs[0]
    made.name, made.shape = net.free_name(f"{halves.name}_unpacked"), halves.shape
    made.type = ir.TensorType(ir.DataType.INT8)
    net.graph.insert_before(next(iter(net.graph)), [cast])
    return made


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
