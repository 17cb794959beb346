"""Biases that take the mean error out of every channel: what rounding adds on average is subtracted where it arises.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, with inputs' means from calibration (their appendix).
Differs: means of the patches that outputs read, so that padding counts; errors that come in with the inputs are taken
out too, layer by layer, where `quantized` was seen in the net on integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.graph.corrections.statistics import InputStatistics
from tersor.graph.net import Array, Net, attribute, constant
from tersor.graph.placement.sites import BIAS, WEIGHT, Placement, weight_axis
from tersor.graph.weights import RoundedWeight, as_matrix
from tersor.graph.writing.qdq import bias_place

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["bias_of", "corrected_biases", "mean_output"]


def corrected_biases(
    net: Net,
    placement: Placement,
    weights: Mapping[str, RoundedWeight],
    source: Mapping[str, InputStatistics],
    quantized: Mapping[str, InputStatistics] | None = None,
) -> dict[str, Float32]:
    """Return node → bias with which each output's mean is that of the float net, for those that can have one.

    source     statistics of the inputs in the float net
    quantized  of the inputs in the net on integers; None: as in the float net, so that only what rounding the weight
               does on average is taken out
    """
    nodes = {str(node.name): node for node in net.nodes}
    found = {}
    for name, rounded in weights.items():
        bias = bias_of(nodes[name])
        if name not in source or bias is None or name not in placement.weights:
            continue
        axis = placement.weights[name].scheme.axis
        weight = constant(nodes[name].inputs[WEIGHT])
        assert weight is not None, "a weight site without a constant"
        wanted = mean_output(as_matrix(weight, axis), source[name])
        got = mean_output(as_matrix(rounded.values, axis), (quantized or source)[name])
        found[name] = (bias + wanted - got).astype(np.float32)
    return found


def mean_output(matrix: Float32, known: InputStatistics) -> Array:
    """Return the mean of each output before its bias, float64 [outputs]; `matrix` [outputs, columns]."""
    rows = matrix.astype(np.float64).reshape(len(known.mean), -1, known.mean.shape[1])
    return np.asarray(np.einsum("grc,gc->gr", rows, known.mean.astype(np.float64)).reshape(-1))


def bias_of(node: ir.Node) -> Array | None:
    """Return the bias that an operator adds to each output, zeros where it could have one; None where it cannot.

    That of a MatMul is the constant of the Add behind it.
    """
    weight = constant(node.inputs[WEIGHT])
    if weight is None:
        return None
    if node.op_type == "MatMul":
        place = bias_place(node)
        return None if place is None else constant(place[0].inputs[place[1]])
    outputs = weight.shape[weight_axis(node) or 0]
    if len(node.inputs) <= BIAS or node.inputs[BIAS] is None:
        return np.zeros(outputs, np.float32)
    bias = constant(node.inputs[BIAS])
    scaled = attribute(node, "beta", 1.0) != 1.0
    return None if bias is None or scaled or bias.shape != (outputs,) else bias
