"""A Gather that takes rows of integers and decodes those alone: a whole table decoded would be read in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.graph.net import Net
from tersor.graph.placement.sites import TABLE
from tersor.graph.weights import RoundedWeight
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = LazyModule("onnx_ir", "onnx")

__all__ = ["take_rows"]


Held = dict["ir.Value | None", "tuple[ir.Value, ir.Value]"]
"""Table → its codes and scales, once they are in the graph."""


def take_rows(net: Net, node: ir.Node, table: RoundedWeight, held: Held) -> None:
    """Put in the place of a Gather: codes of the rows and their scales, gathered, times one another."""
    old, rows = node.inputs[TABLE], node.inputs[1]
    if old not in held:
        name = str(old.name if old is not None else node.name)
        codes_of_all = net.new_constant(f"{name}_quantized", table.codes)
        held[old] = codes_of_all, net.new_constant(f"{name}_scale", table.quantizer.scale[:, None])
    stored, scales = held[old]
    codes = ir.node("Gather", [stored, rows], {"axis": 0}, name=net.free_name(f"{node.name}_codes"))
    scale = ir.node("Gather", [scales, rows], {"axis": 0}, name=net.free_name(f"{node.name}_scales"))
    real = ir.node("Cast", [codes.outputs[0]], {"to": ir.DataType.FLOAT}, name=net.free_name(f"{node.name}_float"))
    product = ir.node("Mul", [real.outputs[0], scale.outputs[0]], name=str(node.name))
    for made, kind in ((codes, ir.DataType.INT8), (scale, ir.DataType.FLOAT), (real, ir.DataType.FLOAT)):
        made.outputs[0].name, made.outputs[0].type = net.free_name(str(made.name)), ir.TensorType(kind)
    net.replace(node, [codes, scale, real, product])
