"""What every operator of a net has to do for one call: exact counts, from the shapes that its values really have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tersor.core.nets.work import OperatorWork, WorkKind
from tersor.graph.net import Array, Net, attribute, constant, operator
from tersor.graph.placement.engines import PASSING
from tersor.graph.placement.sites import WEIGHT, Placement
from tersor.graph.sessions import Feeds, Session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["work_of"]

FUSED = ("Relu", "Clip")
"""What every engine of the table computes within the operator before it."""
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum")
BITS = 8
FEW = 8
"""Input channels: fewer fill no vector, as those of pictures."""


def work_of(
    net: Net, feeds: Feeds, placement: Placement | None = None, *, half: bool = False
) -> tuple[OperatorWork, ...]:
    """Return the work of each operator, in the order of the graph, for one call with `feeds`.

    net        in float, as `QuantizedNet.source`: with `placement` its operators are counted as they run on integers
    half       what is float has 16 bits
    The net runs once, so that shapes are those of this call.
    """
    wanted = [str(value.name) for node in net.nodes for value in node.outputs if value.name]
    shapes: Mapping[str, Array] = {**Session(net, wanted, optimized=False).run(feeds), **feeds}
    return tuple(_work(node, shapes, placement, half=half) for node in net.nodes)


def _work(node: ir.Node, made: Mapping[str, Array], placement: Placement | None, *, half: bool) -> OperatorWork:
    name, weight = str(node.name), constant(node.inputs[WEIGHT]) if len(node.inputs) > WEIGHT else None
    site = None if placement is None else placement.weights.get(name)
    is_static = placement is not None and placement.precision.activations == "static"
    on_integers = placement is not None and name in placement.integer and (is_static or site is not None)
    size = 1 if is_static and on_integers else 2 if half else 4
    moving = [value for value in node.inputs if value is not None and constant(value) is None]
    read = sum(_bytes(made.get(str(value.name)), size) for value in moving)
    written = sum(_bytes(made.get(str(value.name)), size) for value in node.outputs)
    stored = [constant(value) for value in node.inputs if value is not None and constant(value) is not None]
    numbers = sum(each.size for each in stored if each is not None and each.dtype.kind == "f")
    bits = (
        BITS * (2 if half else 4) if site is None else BITS if site.scheme.bits > BITS // 2 or is_static else BITS // 2
    )
    first = made.get(str(node.inputs[0].name)) if node.inputs and node.inputs[0] is not None else None
    macs = _macs(node, weight, first, made.get(str(node.outputs[0].name)))
    return OperatorWork(
        name,
        node.op_type,
        _kind(node, weight, macs),
        "int8" if on_integers else "float16" if half else "float32",
        macs,
        numbers * bits // BITS if macs else 0,
        read,
        written,
        _is_fused(node),
    )


def _bytes(values: Array | None, size: int) -> int:
    """Return the bytes of an activation: floats as they are kept, all else as it is."""
    if values is None:
        return 0
    return int(values.size * size if values.dtype.kind == "f" else values.nbytes)


def _macs(node: ir.Node, weight: Array | None, first: Array | None, made: Array | None) -> int:
    if made is None or first is None:
        return 0
    kind = operator(node)
    if kind == "Conv" and weight is not None:
        return int(made.size * math.prod(weight.shape[1:]))
    if kind == "ConvTranspose" and weight is not None:
        return int(first.size * math.prod(weight.shape[1:]))
    if kind == "MatMul":
        return int(made.size * first.shape[-1])
    if kind == "Gemm":
        return int(made.size * first.shape[0 if attribute(node, "transA", 0) else 1])
    return 0


def _kind(node: ir.Node, weight: Array | None, macs: int) -> WorkKind:
    kind = operator(node)
    if kind in ("Conv", "ConvTranspose") and weight is not None:
        if kind == "Conv" and weight.shape[1] == 1 and attribute(node, "group", 1) > 1:
            return "depthwise"
        if math.prod(weight.shape[2:]) == 1:
            return "pointwise"
        return "stem" if weight.shape[1 if kind == "Conv" else 0] < FEW else "convolution"
    if macs:
        return "product" if weight is None else "linear"
    if kind in POOLS:
        return "pool"
    return "move" if kind in PASSING and kind != "MaxPool" else "function"


def _is_fused(node: ir.Node) -> bool:
    """Whether an engine computes it within the operator before it: a bound, or the bias of a product."""
    sources: Sequence[ir.Value] = [value for value in node.inputs if value is not None and constant(value) is None]
    before = sources[0].producer() if len(sources) == 1 else None
    if before is None or len(sources[0].uses()) != 1:
        return False
    if operator(node) in FUSED:
        return operator(before) in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
    return operator(node) == "Add" and operator(before) == "MatMul"
