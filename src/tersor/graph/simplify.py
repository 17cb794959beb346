"""Make a graph plain before it is rounded: batch norms folded, nothing that does nothing, every operator named.

A batch norm at rest is a factor and a summand for each channel; in front of a rounding it would be a second one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tersor.graph.net import Array, Net, attribute, beside, constant, inner_nodes, operator
from tersor.graph.placement.sites import weight_axis
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx_ir.passes import common as passes
else:
    ir, passes = LazyModule("onnx_ir", "onnx"), LazyModule("onnx_ir.passes.common", "onnx")

__all__ = ["simplified", "with_products"]

FOLDED = ("Conv", "ConvTranspose", "Gemm")
EPSILON = 1e-5
IDLE = ("Identity", "Dropout")
"""What does nothing at rest."""
MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
"""What is done at once where it is done to a weight."""
POOLED = ("FLOAT", "FLOAT16", "DOUBLE")
"""What GlobalAveragePool takes."""


def simplified(net: Net) -> Net:
    """Return a net of the same function, up to rounding, with fewer operators; names of values that stay are kept."""
    made = net.copy()
    for node in list(made.nodes):
        if operator(node) in IDLE and not _is_active(node):
            _bypass(made, node)
        elif operator(node) in MOVING:
            _move(made, node)
    for node in list(made.nodes):
        if operator(node) == "BatchNormalization":
            _fold(made, node)
        elif operator(node) == "ReduceMean":
            _pool(made, node)
    passes.RemoveUnusedNodesPass()(made.model)
    _name_nodes(made)
    return made


def with_products(net: Net) -> Net:
    """Return a net in which every Gemm of a constant matrix is a MatMul, and an Add of its bias: the same numbers.

    Engines keep the weights of a MatMul small where they decode those of a Gemm.
    """
    made = net.copy()
    for node in list(made.nodes):
        weight = constant(node.inputs[1]) if operator(node) == "Gemm" else None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        scaled = attribute(node, "alpha", 1.0) != 1.0 or (bias is not None and attribute(node, "beta", 1.0) != 1.0)
        if weight is not None and weight.ndim == 2 and not attribute(node, "transA", 0) and not scaled:
            _multiply(made, node, weight.T if attribute(node, "transB", 0) else weight, bias)
    passes.RemoveUnusedNodesPass()(made.model)
    return made


def _multiply(net: Net, node: ir.Node, weight: Array, bias: ir.Value | None) -> None:
    """Put a MatMul of that name, and an Add where there is a bias, in the place of a Gemm."""
    stored = net.new_constant(f"{node.name}_matrix", np.ascontiguousarray(weight))
    product = ir.node("MatMul", [node.inputs[0], stored], name=node.name)
    nodes = [product]
    if bias is not None:
        product.outputs[0].name = net.free_name(f"{node.name}_product")
        product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        nodes.append(ir.node("Add", [product.outputs[0], bias], name=net.free_name(f"{node.name}_sum")))
    net.replace(node, nodes)


def _is_active(node: ir.Node) -> bool:
    """Whether a Dropout drops something, or somebody asks which."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    switch = constant(training)
    is_on = training is not None and (switch is None or bool(switch.any()))
    return is_on or any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


def _move(net: Net, node: ir.Node) -> None:
    """Do at once what only moves the numbers of a weight: MatMul with a Transpose of its weight, as exporters write."""
    numbers = [constant(value) for value in node.inputs if value is not None]
    weight, made = constant(node.inputs[0]), node.outputs[0]
    if weight is None or any(number is None for number in numbers) or made.is_graph_output():
        return
    try:
        moved = _moved(node, weight, numbers[1] if len(numbers) > 1 else None)
    except (ValueError, IndexError, TypeError):
        return  # what cannot be is left to engines to refuse
    made.replace_all_uses_with(net.new_constant(str(made.name), moved))
    net.graph.remove(node, safe=True)


def _moved(node: ir.Node, weight: Array, told: Array | None) -> Array:
    """Return what an operator that only moves makes of a weight; `told` are its axes, or its shape."""
    axes = None if told is None else tuple(int(axis) for axis in told.reshape(-1))
    if operator(node) == "Transpose":
        return weight.transpose(attribute(node, "perm", None))
    if operator(node) == "Squeeze":
        return weight.squeeze(axes)
    if operator(node) == "Unsqueeze":
        return np.expand_dims(weight, axes or ())
    keeps = not attribute(node, "allowzero", 0)
    shape = [weight.shape[place] if keeps and size == 0 else size for place, size in enumerate(axes or ())]
    return weight.reshape(shape)


def _bypass(net: Net, node: ir.Node) -> None:
    source, value = node.inputs[0], node.outputs[0]
    if source is None or value.is_graph_output():
        return
    value.replace_all_uses_with(source)
    net.graph.remove(node, safe=True)


def _fold(net: Net, node: ir.Node) -> None:
    """Multiply a batch norm into the weights before it, where nobody else reads what they make."""
    source = node.inputs[0]
    before = None if source is None else source.producer()
    if before is None or source is None or operator(before) not in FOLDED or source.is_graph_output():
        return
    if attribute(node, "training_mode", 0):
        return  # counts anew in every batch
    numbers = _statistics(node)
    weight = constant(before.inputs[1])
    bias = constant(before.inputs[2]) if len(before.inputs) > 2 and before.inputs[2] is not None else np.zeros(1)
    if len(source.uses()) != 1 or weight is None or bias is None or numbers is None:
        return
    if before.op_type == "ConvTranspose" and attribute(before, "group", 1) != 1:
        return
    factor, summand, mean = numbers
    axis = weight_axis(before) or 0
    outputs = weight.shape[axis] if axis < weight.ndim else 1
    if len(factor) != outputs or bias.ndim > 2 or (*bias.shape, 1)[bias.ndim - 1] not in (1, outputs):
        return  # no engine runs it
    with np.errstate(over="ignore", invalid="ignore"):  # weights that are not finite are kept in float later
        folded = weight * beside(factor, axis, weight.ndim)
        shifted = (bias * attribute(before, "beta", 1.0) - mean) * factor + summand
        folded, shifted = folded.astype(weight.dtype), shifted.astype(weight.dtype)
    bias_name = f"{before.name or before.op_type}_bias"
    for place, values in ((1, folded), (2, shifted)):
        old = before.inputs[place] if len(before.inputs) > place else None
        net.put_constant(before, place, values, bias_name if old is None else str(old.name))
    if before.op_type == "Gemm" and "beta" in before.attributes:
        del before.attributes["beta"]
    if node.outputs[0].is_graph_output():
        node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
        name, node.outputs[0].name = node.outputs[0].name, None
        source.name = name
    else:
        node.outputs[0].replace_all_uses_with(source)
    net.graph.remove(node, safe=True)


def _statistics(node: ir.Node) -> tuple[Array, Array, Array] | None:
    """Return factor, summand and mean of a batch norm; None where it has none that can be folded."""
    numbers = [constant(value) for value in node.inputs[1:5]]
    known = [number for number in numbers if number is not None and number.dtype.kind == "f"]
    if len(known) != 4 or len({number.shape for number in known}) > 1 or known[0].ndim != 1:
        return None
    with np.errstate(invalid="ignore"):
        gamma, beta, mean, variance = (number.astype(np.float64) for number in known)
    divisor = variance + attribute(node, "epsilon", EPSILON)
    return (gamma / np.sqrt(divisor), beta, mean) if (divisor > 0).all() else None


def _pool(net: Net, node: ir.Node) -> None:
    """Write a mean over all places of an image as the pooling that engines have integer kernels for."""
    source = node.inputs[0]
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
    if source is None or source.shape is None or axes is None or not attribute(node, "keepdims", 1):
        return
    rank = len(source.shape)
    places = sorted(int(axis) % max(rank, 1) for axis in np.atleast_1d(axes))
    if rank < 3 or places != list(range(2, rank)) or source.dtype is None or source.dtype.name not in POOLED:
        return
    net.replace(node, [ir.node("GlobalAveragePool", [source], name=node.name)])


def _name_nodes(net: Net) -> None:
    """Give every operator a name that no other has: files may come without, or with one twice.

    The first that has a name keeps it.
    """
    nodes = [*net.nodes, *inner_nodes(net.graph)]
    taken = {node.name for node in nodes}
    given: set[str] = set()
    for number, node in enumerate(nodes):
        wanted = node.name or f"{node.op_type}_{number}"
        while wanted in given or (wanted != node.name and wanted in taken):
            wanted = f"{wanted}_{number}"
        node.name = wanted
        given.add(wanted)
