"""A net on integers as a PyTorch module that `torch.compile` lowers to integer kernels.

Weights are int8 buffers; activations go through the operators of `quantized_decomposed`, which inductor fuses with what
stands between them (on x86 into oneDNN's kernels, with `torch._inductor.config.freezing`).
"""

from __future__ import annotations

import importlib
import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import SchemeError
from tersor.graph.placement.sites import BIAS
from tersor.graph.ptq import QuantizedNet
from tersor.graph.scheme import Quantizer
from tersor.graph.training.convert import evaluated
from tersor.graph.training.fake import fake_quantize_at_run_time
from tersor.graph.training.ops.layers import gemm
from tersor.graph.training.places import QUANTIZERS, put
from tersor.graph.training.prepare import prepare
from tersor.graph.weights import RoundedWeight
from tersor.graph.writing.stored import HALF_BITS
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx
else:
    torch = LazyModule("torch", "torch")

__all__ = ["integer_module"]

SIGNED, HALVES = (-128, 127), (-8, 7)
"""Codes of 8 bits, and of 4."""
PLACE = "integers"
"""Under this name the module keeps codes, scales and zero points."""


def integer_module(quantized: QuantizedNet, *, by_row: bool = False) -> fx.GraphModule:
    """Return a module at rest with weights of integers; its outputs are those of `quantized.net`, up to float sums.

    by_row  ranges found at run time are those of each row, and not of the batch, as XNNPACK finds them
    Raises SchemeError for activations whose range is found at run time without `by_row`, UnsupportedError for an
    operator without a row in the table of those that PyTorch can take.
    """
    if quantized.placement.precision.activations == "dynamic" and not by_row:
        raise SchemeError(
            "ranges found at run time are for ONNX Runtime and phones; PyTorch takes static or float activations"
        )
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    prepared = prepare(quantized)
    return _Writing(quantized, prepared, evaluated(prepared)).written()


class _Writing:
    def __init__(self, quantized: QuantizedNet, module: fx.GraphModule, values: dict[str, Tensor]) -> None:
        self.quantized, self.module, self.graph, self.values = quantized, module, module.graph, values
        self.operators: Any = torch.ops.quantized_decomposed
        self.is_dynamic = quantized.placement.precision.activations == "dynamic"

    def written(self) -> fx.GraphModule:
        for node in list(self.graph.nodes):
            kind, site = node.meta.get("kind"), node.meta.get("site", "")
            with self.graph.inserting_before(node):
                if kind == "activation":
                    self._replace(node, self._activation(node, self.quantized.activations[site]))
                elif kind == "weight" and (product := _product(node)) is not None:
                    self._linear(node, product, site)
                elif kind == "weight":
                    self._replace(node, self._weight(site, self.quantized.weights[site]))
                elif kind == "table":
                    self._take_rows(node, site, self.quantized.tables[site])
                elif kind == "bias":
                    self._replace(node, self._buffer(f"{site}.bias", self.values[node.name]))
                elif node.target is fake_quantize_at_run_time:
                    self._replace(node, self._rows(node.args[0]))
        self.graph.eliminate_dead_code()
        self._forget_unused()
        self.module.recompile()
        return self.module.requires_grad_(False).eval()

    def _replace(self, old: fx.Node, made: fx.Node) -> None:
        old.replace_all_uses_with(made)
        self.graph.erase_node(old)

    def _activation(self, node: fx.Node, quantizer: Quantizer) -> fx.Node:
        scheme = quantizer.scheme
        kind = torch.int8 if scheme.signed else torch.uint8
        grid = (float(quantizer.scale), int(quantizer.zero_point), scheme.lowest, scheme.highest, kind)
        codes = self.graph.call_function(self.operators.quantize_per_tensor.default, (node.args[0], *grid))
        return self.graph.call_function(self.operators.dequantize_per_tensor.default, (codes, *grid))

    def _rows(self, values: Any) -> fx.Node:
        """Return values rounded to the range of each row: 255 steps from its smallest to its largest, 0 among them."""
        call, codes, ops = self.graph.call_function, (*SIGNED, torch.int8), self.operators
        found = call(ops.choose_qparams_per_token_asymmetric.default, (values, torch.int8))
        grid = call(operator.getitem, (found, 0)), call(operator.getitem, (found, 1))
        rounded = call(ops.quantize_per_token.default, (values, *grid, *codes))
        return call(ops.dequantize_per_token.default, (rounded, *grid, *codes, torch.float32))

    def _weight(self, site: str, weight: RoundedWeight) -> fx.Node:
        scheme, scale = weight.quantizer.scheme, torch.from_numpy(np.array(weight.quantizer.scale))
        codes = self._buffer(f"{site}.codes", torch.from_numpy(weight.codes.copy()))
        if scheme.axis is None:
            return self._times(codes, self._buffer(f"{site}.scale", scale))
        if scheme.block is not None:
            steps = self._buffer(f"{site}.scale", scale)
            if self.is_dynamic:
                zeros = self._buffer(f"{site}.zero_point", torch.zeros(scale.shape, dtype=torch.int64))
                given = (codes, steps, zeros, *self._ends(weight), torch.int8, scheme.block, torch.float32)
                return self.graph.call_function(self.operators.dequantize_per_channel_group.default, given)
            return self._times(
                codes, self.graph.call_method("repeat_interleave", (steps, scheme.block, 1 - scheme.axis))
            )
        zero = torch.zeros(scale.shape, dtype=torch.int64)
        parts = [self._buffer(f"{site}.{name}", part) for name, part in (("scale", scale), ("zero_point", zero))]
        grid = (scheme.axis, *self._ends(weight), torch.int8)
        return self.graph.call_function(self.operators.dequantize_per_channel.default, (codes, *parts, *grid))

    def _ends(self, weight: RoundedWeight) -> tuple[int, int]:
        """Return between which codes a weight is said to lie: XNNPACK packs those of 4 bits two to the byte, in pairs
        of a row and where activations are rounded at run time."""
        packs = self.is_dynamic and weight.quantizer.scheme.bits <= HALF_BITS and weight.codes.shape[-1] % 2 == 0
        return HALVES if packs else SIGNED

    def _linear(self, weight: fx.Node, product: fx.Node, site: str) -> None:
        """Put a linear layer, with the bias that is added in or behind it, in the place of a product: compilers know
        these."""
        weights = self.quantized.weights[site]
        matrix = weights if weights.quantizer.scheme.axis == 0 else _transposed(weights)
        last, inputs = product, [product.args[0], self._weight(site, matrix), *product.args[BIAS:]]
        behind = next(iter(product.users)) if len(product.users) == 1 and len(inputs) == BIAS else None
        if behind is not None and behind.target is torch.add and len(behind.args) == 2 and not behind.kwargs:
            other = behind.args[0] if behind.args[1] is product else behind.args[1]
            stored = self.values.get(getattr(other, "name", ""))
            if stored is not None and tuple(stored.shape) == (len(matrix.codes),):
                last, inputs = behind, [*inputs, other]
        with self.graph.inserting_before(last):
            made = self.graph.call_function(torch.nn.functional.linear, tuple(inputs))
        self._replace(last, made)
        if last is not product:
            self.graph.erase_node(product)
        self.graph.erase_node(weight)

    def _times(self, codes: fx.Node, scale: fx.Node) -> fx.Node:
        real = self.graph.call_method("to", (codes, torch.float32))
        return self.graph.call_function(operator.mul, (real, scale))

    def _take_rows(self, table: fx.Node, site: str, rounded: RoundedWeight) -> None:
        """Let every reader of a table take rows of codes, and their scales, and multiply those alone."""
        scale = np.ascontiguousarray(rounded.quantizer.scale[:, None])
        codes = self._buffer(f"{site}.codes", torch.from_numpy(rounded.codes.copy()))
        steps = self._buffer(f"{site}.scale", torch.from_numpy(scale))
        for reader in list(table.users):
            with self.graph.inserting_before(reader):
                taken = [self.graph.node_copy(reader), self.graph.node_copy(reader)]
                for copy, part in zip(taken, (codes, steps), strict=True):
                    copy.replace_input_with(table, part)
                self._replace(reader, self._times(*taken))
        self.graph.erase_node(table)

    def _buffer(self, name: str, tensor: Tensor) -> fx.Node:
        return self.graph.get_attr(put(self.module, f"{PLACE}.{name.replace('/', '_')}", tensor, trained=False))

    def _forget_unused(self) -> None:
        """Drop the float weights, and what training needs."""
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for name, _ in [*self.module.named_parameters(), *self.module.named_buffers()]:
            if name not in read:
                owner, _, leaf = name.rpartition(".")
                delattr(self.module.get_submodule(owner), leaf)
        if hasattr(self.module, QUANTIZERS) and not any(name.startswith(f"{QUANTIZERS}.") for name in read):
            delattr(self.module, QUANTIZERS)


def _product(weight: fx.Node) -> fx.Node | None:
    """Return the product that alone reads a matrix as its second, outputs with a scale each; None without one."""
    reader = next(iter(weight.users)) if len(weight.users) == 1 else None
    if reader is None or len(reader.args) < 2 or reader.args[1] is not weight:
        return None
    axis, settings = weight.args[4], reader.kwargs
    if reader.target is torch.matmul:
        return reader if axis == 1 else None
    plain = all(settings.get(name, 1) == 1 for name in ("alpha", "beta")) and not settings.get("transA", 0)
    outputs = 0 if settings.get("transB", 0) else 1
    return reader if reader.target is gemm and plain and axis == outputs else None


def _transposed(weight: RoundedWeight) -> RoundedWeight:
    """Return a matrix [inputs, outputs] as [outputs, inputs]."""
    quantizer = weight.quantizer
    scheme = replace(quantizer.scheme, axis=0)
    scale = quantizer.scale if scheme.block is None else np.ascontiguousarray(quantizer.scale.T)
    zero = np.zeros(scale.shape, scheme.dtype)
    return RoundedWeight(np.ascontiguousarray(weight.codes.T), Quantizer(scale, zero, scheme))
