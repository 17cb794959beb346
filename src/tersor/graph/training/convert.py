"""From a trained module to the net on integers: what was rounded in training is what is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import QualityError
from tersor.graph.net import Array, Net
from tersor.graph.ptq import QuantizedNet
from tersor.graph.scheme import Quantizer
from tersor.graph.training.fake import codes_of, step_of
from tersor.graph.training.module import to_onnx_weights
from tersor.graph.training.norms import conv_norm
from tersor.graph.training.sources import put_biases, put_weights, start_of
from tersor.graph.weights import RoundedWeight, stored_by
from tersor.graph.writing.qdq import with_quantizers
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx
else:
    torch, fx = LazyModule("torch", "torch"), LazyModule("torch.fx", "torch")

__all__ = ["convert", "evaluated"]


def convert(prepared: fx.GraphModule, quantized: QuantizedNet) -> QuantizedNet:
    """Return the net that `prepared` was made from, with what it has learned.

    The integers of weights are those that training rounded to. ONNX Runtime, node by node, makes what the module makes
    at rest, but where a value lies so near to the middle between two codes that the order of a float sum decides:
    there by one step. Raises QualityError where a step or a weight is no longer finite.
    """
    values = evaluated(prepared)
    activations = dict(quantized.activations)
    stored = {"weight": dict(quantized.weights), "table": dict(quantized.tables)}
    floats: dict[str, Array] = {}
    rounded: dict[tuple[Any, ...], tuple[Array, RoundedWeight]] = {}  # once for all operators that share a weight
    biases: dict[str, Array] = {}
    for node in prepared.graph.nodes:
        site, kind = node.meta.get("site", ""), node.meta.get("kind")
        if kind == "activation":
            step = step_of(*(values[str(part)] for part in node.args[1:3]))
            activations[site] = replace(activations[site], scale=_finite(step, site))
        elif kind in stored:
            if node.args not in rounded:
                weight = _finite(values[str(node.args[0])], site)
                learned = _rounded(node, values, stored[kind][site].quantizer, site)
                rounded[node.args] = weight, stored_by(quantized.placement.engine, learned)
            floats[site], stored[kind][site] = rounded[node.args]
        elif node.target is conv_norm:
            biases[node.meta["node"]] = _finite(values[str(_unrounded(node.args[2]))], node.meta["node"])
    source = Net(to_onnx_weights(prepared, start_of(quantized, rounded=True).model), quantized.source.name)
    put_weights(source, floats)
    put_biases(source, biases)
    weights, tables = stored["weight"], stored["table"]
    made = with_quantizers(source, quantized.placement, activations, weights, tables=tables)
    parts: dict[str, Any] = {"activations": activations, "weights": weights, "biases": {}, "tables": tables}
    return replace(quantized, net=made, source=source, **parts)


def evaluated(module: fx.GraphModule) -> dict[str, Tensor]:
    """Return by node what is made of parameters alone, on the CPU, as the engine will have it."""
    interpreter = fx.Interpreter(module)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "get_attr" or (
                node.all_input_nodes and all(n in interpreter.env for n in node.all_input_nodes)
            ):
                interpreter.env[node] = interpreter.run_node(node)
    found = {node.name: value for node, value in interpreter.env.items()}
    return {name: value.detach().cpu() for name, value in found.items() if isinstance(value, torch.Tensor)}


def _rounded(node: fx.Node, values: dict[str, Tensor], quantizer: Quantizer, site: str) -> RoundedWeight:
    weight, base, shift = (values[str(part)] for part in node.args[:3])
    scheme, step = quantizer.scheme, step_of(base, shift)
    codes = codes_of(weight, step, (0, scheme.lowest, scheme.highest), scheme.axis, scheme.block)
    return RoundedWeight(codes.numpy().astype(scheme.dtype), replace(quantizer, scale=_finite(step, site)))


def _unrounded(node: Any) -> fx.Node:
    """Return the bias before it was rounded, for the writer to round."""
    made: fx.Node = node.args[0] if node.meta.get("kind") == "bias" else node
    return made


def _finite(tensor: Tensor, name: str) -> Array:
    numbers: Array = tensor.numpy()
    if not np.isfinite(numbers).all():
        raise QualityError(f"{name}: training made it infinite or nan; train with a lower learning rate")
    return numbers
