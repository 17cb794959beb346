"""Where a net is rounded: which values, weights and biases become integers, so that an engine has whole operators.

An operator runs on integers when all its inputs are; what it makes is rounded where the next one needs it. Functions
that an engine fuses into the operator before them are passed over, operators that only move numbers keep the grid of
what they move, and inputs of a Concat share one where the engine needs it. Everything else stays in float, by name and
with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.errors import SchemeError
from tersor.graph.net import Net, attribute, constant, inner_nodes, operator
from tersor.graph.placement.engines import WITH_WEIGHTS, Engine
from tersor.graph.placement.sites import BIAS, TABLE, WEIGHT, Kept, Placement, Site, weight_axis
from tersor.graph.scheme import ACTIVATIONS, USUAL, Precision, Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["place"]

SCALING = ("Mul", "Div", "Add", "Where", "Cast")
"""What stands between a product and the Softmax of its scores."""
LARGEST = 1 << 31
"""No group divides by it."""
SMALLEST_TABLE, SHORTEST_ROW = 4096, 32
"""Numbers; below, scales and operators cost more than the table. Short rows are coordinates, and no features."""

TABLE_SCHEME = Scheme(8, signed=True, symmetric=True, axis=0)
"""Of tables, whatever weights have: engines gather no halves of bytes."""
REASONS = {
    "static": "{} has no integer kernel for it",
    "dynamic": "{} finds ranges at run time for MatMul alone",
    "float": "{} would decode its weights in every run",
}
"""Why an operator with weights stays in float, by the kind of activations."""


def place(net: Net, row: Engine, precision: Precision = USUAL, *, left: Collection[str] = ()) -> Placement:
    """Return the sites of `net` for an engine.

    left  names of operators that stay in float
    Raises SchemeError for a name that is not there, and for activations that the engine cannot take so.
    """
    absent = sorted({*left, *precision.wide} - {str(node.name) for node in net.nodes})
    if absent:
        raise SchemeError(f"{net.name} has no operator {', '.join(map(repr, absent))}")
    if not _weighted(row, precision):
        others = " or ".join(kind for kind in ACTIVATIONS if _weighted(row, Precision(activations=kind)))
        raise SchemeError(f"{row.name} runs no net with {precision.activations} activations: choose {others}")
    if precision.block is not None and precision.activations == "dynamic" and precision.block % (row.blocks or LARGEST):
        told = (
            "in no groups" if row.blocks is None else f"in groups of {row.blocks} or a multiple, not {precision.block}"
        )
        raise SchemeError(f"{row.name} takes weights for dynamic activations {told}")
    return _Placing(net, row, precision, frozenset(left)).placed()


def _weighted(row: Engine, precision: Precision) -> tuple[str, ...]:
    """Return the operators whose weights become integers."""
    return {"static": row.weighted, "dynamic": row.dynamic, "float": row.compressed}[precision.activations]


@dataclass
class _Placing:
    net: Net
    row: Engine
    precision: Precision
    left: frozenset[str]
    integer: dict[str, ir.Node] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    wanted: dict[str, str] = field(default_factory=dict)
    """Value → the group it is in, as far as is known."""
    scores: set[str] = field(default_factory=set)
    """Queries and keys."""

    def placed(self) -> Placement:
        for node in self.net.nodes:
            if self._is_integer(node):
                self.integer[str(node.name)] = node
        if self.is_static:
            self._want_all()
        self.kept += list(self._within())
        sites = [self._activation(name) for name in self.values if name in self.wanted]
        sites += [*self._constants(), *self._tables()]
        return Placement(self.row, tuple(sites), tuple(self.integer), tuple(self.kept), self.precision)

    @cached_property
    def is_static(self) -> bool:
        """Whether activations have ranges."""
        return self.precision.activations == "static"

    @cached_property
    def weighted(self) -> tuple[str, ...]:
        """Operators whose weights become integers."""
        return _weighted(self.row, self.precision)

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        """Every value by name, in the order of the graph."""
        return self.net.values()

    @cached_property
    def order(self) -> dict[str, int]:
        """Where each operator stands."""
        return {str(node.name): place for place, node in enumerate(self.net.nodes)}

    # Which operators run on integers

    def _is_integer(self, node: ir.Node) -> bool:
        if operator(node) in self.weighted:
            reason = self._against_weighted(node)
        elif self.is_static and operator(node) in self.row.joining:
            return str(node.name) not in self.left and self._joins(node)
        elif operator(node) in WITH_WEIGHTS:
            reason = REASONS[self.precision.activations].format(self.row.name)
        else:
            return False
        if reason:
            self.kept.append(Kept(str(node.name), node.op_type, reason))
        return not reason

    def _against_weighted(self, node: ir.Node) -> str:
        """Return why an operator with weights, or a product, stays in float; nothing where it does not."""
        weight = constant(node.inputs[WEIGHT])
        may_multiply = operator(node) == "MatMul" and self.is_static and self._multiplies(node)
        transposes = attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0
        against = {
            "asked for": str(node.name) in self.left,
            "not in float32": any(value is not None and not _is_float(value) for value in node.inputs),
            "its first input is constant": constant(node.inputs[0]) is not None,
            "its weights are computed, not constant": weight is None and not may_multiply,
            "its weights are not finite": weight is not None and not np.isfinite(weight).all(),
            "its weight is no matrix": weight is not None and (weight.ndim < 2 or not weight.size),
            "a Gemm with transA or alpha": node.op_type == "Gemm" and transposes,
            "a ConvTranspose in groups": node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1,
        }
        return next((reason for reason, holds in against.items() if holds), "")

    def _multiplies(self, node: ir.Node) -> bool:
        """Whether a product of two activations runs on integers."""
        return self.row.products or (self.row.scores is not None and self._makes_scores(node))

    def _makes_scores(self, node: ir.Node) -> bool:
        """Whether a product of queries and keys, both made on integers, becomes the scores of an attention."""
        after = node.outputs[0]
        while len(after.uses()) == 1 and not after.is_graph_output():
            user = next(iter(after.uses())).node
            if operator(user) == "Softmax":
                return all(value is not None and self._is_made(value) for value in node.inputs)
            if operator(user) not in SCALING:
                return False
            after = user.outputs[0]
        return False

    def _within(self) -> Iterator[Kept]:
        """Yield what loops and branches hold: they are not looked into."""
        for node in inner_nodes(self.net.graph):
            if operator(node) in WITH_WEIGHTS:
                yield Kept(str(node.name), node.op_type, "inside a loop or branch")

    def _joins(self, node: ir.Node) -> bool:
        """Whether all that an operator reads is made of integers already."""
        data = [value for value in node.inputs if value is not None and _is_float(value)]
        return len(data) > 0 and all(constant(value) is None and self._is_made(value) for value in data)

    def _is_made(self, value: ir.Value) -> bool:
        """Whether a value comes out of an operator on integers, through functions that are fused and moves."""
        node = value.producer()
        while node is not None and str(node.name) not in self.integer:
            if not (operator(node) in self.row.passing or self._is_fused(node)):
                return False
            source = self._source(node)
            node = None if source is None else source.producer()
        return node is not None

    def _is_fused(self, node: ir.Node) -> bool:
        """Whether the engine computes this function, or adds this constant, within the operator before it."""
        if operator(node) in self.row.fused:
            source = node.inputs[0]
        elif operator(node) == "Add":
            source = self._source(node)
        else:
            return False
        before = None if source is None else source.producer()
        if before is None or source is None or len(source.uses()) != 1 or source.is_graph_output():
            return False
        if operator(node) == "Add":
            return operator(before) in ("MatMul", "Gemm") and str(before.name) in self.integer
        return str(before.name) in self.integer or self._is_fused(before)

    @staticmethod
    def _source(node: ir.Node) -> ir.Value | None:
        """Return the one input that is not constant; None where there are more."""
        moving = [value for value in node.inputs if value is not None and constant(value) is None and _is_float(value)]
        return moving[0] if len(moving) == 1 else None

    # Which values are rounded

    def _want_all(self) -> None:
        for node in self.integer.values():
            for value in self._data(node):
                self._want(value)
            if operator(node) in self.row.closed:
                self._want(self._final(node.outputs[0]))
        for node in self.net.nodes:
            self._join(node)

    def _data(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yield the inputs that are rounded as activations."""
        if operator(node) in self.row.weighted:
            moving = [value for value in node.inputs[:BIAS] if value is not None and constant(value) is None]
            is_product = len(moving) == BIAS and not self.row.products
            yield from map(self._unmoved, moving) if is_product else moving
            return
        for value in node.inputs:
            if value is None or not _is_float(value):
                continue
            if operator(node) == "Add" and self.row.fuses_sum and self._is_summed(value):
                continue
            yield value

    def _unmoved(self, value: ir.Value) -> ir.Value:
        """Return what queries or keys were before operators moved their numbers."""
        node = value.producer()
        while node is not None and operator(node) in self.row.passing:
            value = self._source(node) or value
            node = value.producer()
        self.scores.add(str(value.name))
        return value

    def _is_summed(self, value: ir.Value) -> bool:
        """Whether an Add can take this output of a convolution before it is rounded: the last one of its inputs."""
        node = value.producer()
        if node is None or operator(node) not in self.row.weighted or len(value.uses()) != 1:
            return False
        others = [other for other in next(iter(value.uses())).node.inputs if other is not value]
        return not any(
            (made := other.producer()) is not None
            and operator(made) in self.row.weighted
            and len(other.uses()) == 1
            and self.order[str(made.name)] > self.order[str(node.name)]
            for other in others
            if other is not None
        )

    def _final(self, value: ir.Value) -> ir.Value:
        """Return what an operator makes once the functions behind it are fused."""
        while len(value.uses()) == 1 and not value.is_graph_output():
            node = next(iter(value.uses())).node
            if not self._is_fused(node):
                break
            value = node.outputs[0]
        return value

    def _want(self, value: ir.Value) -> None:
        name = str(value.name)
        if name in self.wanted:
            return
        self.wanted[name] = name
        node = value.producer()
        if node is None or operator(node) not in self.row.passing:
            return
        source = self._source(node)
        if source is not None and self._is_made(source):
            self._want(source)
            self._unite(str(source.name), name)

    def _join(self, node: ir.Node) -> None:
        """Give all inputs of a Concat the grid of its output, and what is only moved the grid that it had."""
        is_joining = operator(node) == "Concat" and self.row.one_grid and str(node.name) in self.integer
        source = self._source(node) if operator(node) in self.row.passing else None
        names = [str(value.name) for value in (node.inputs if is_joining else [source]) if value is not None]
        for made in node.outputs:
            for name in names:
                if name in self.wanted and str(made.name) in self.wanted:
                    self._unite(name, str(made.name))

    def _unite(self, one: str, other: str) -> None:
        kept, gone = self.wanted[one], self.wanted[other]
        for name, group in self.wanted.items():
            if group == gone:
                self.wanted[name] = kept

    # What comes out

    def _activation(self, name: str) -> Site:
        value = self.values[name]
        is_made = self._is_made(value)
        readers = [use.node for use in value.uses() if use.node.graph is self.net.graph]
        taking = tuple(dict.fromkeys(str(node.name) for node in readers if is_made or self._takes(node)))
        returned = is_made and value.is_graph_output()
        scheme = self.row.scores if name in self.scores and self.row.scores is not None else self.row.activations
        return Site(name, "activation", scheme, taking, self.wanted[name], returned)

    def _takes(self, node: ir.Node) -> bool:
        """Whether an operator reads codes: one on integers, or one that moves them to one."""
        moves = operator(node) in self.row.passing and any(str(value.name) in self.wanted for value in node.outputs)
        return str(node.name) in self.integer or moves

    def _constants(self) -> Iterator[Site]:
        for name, node in self.integer.items():
            weight = node.inputs[WEIGHT] if operator(node) in self.row.weighted else None
            stored = constant(weight)
            if weight is None or stored is None:
                continue
            scheme = self.precision.of_weight(name, stored.shape, weight_axis(node))
            yield Site(str(weight.name), "weight", scheme, (name,), str(weight.name))
            if not self.is_static:
                continue  # sums are floats: so are biases
            bias = node.inputs[BIAS] if len(node.inputs) > BIAS else None
            numbers = constant(bias)
            if bias is not None and numbers is not None and numbers.ndim == 1 and self.row.rounds_bias:
                yield Site(str(bias.name), "bias", replace(scheme, axis=0), (name,), str(bias.name))

    def _tables(self) -> Iterator[Site]:
        for node in self.net.nodes:
            if operator(node) != "Gather" or str(node.name) in self.left or attribute(node, "axis", 0):
                continue
            table, rows = constant(node.inputs[TABLE]), constant(node.inputs[1])
            if table is None or rows is not None or table.dtype != np.float32 or table.ndim != 2:
                continue
            is_large = table.size >= SMALLEST_TABLE and table.shape[1] >= SHORTEST_ROW
            if is_large and np.isfinite(table).all() and not self._is_exact(node.outputs[0]):
                name = str(node.inputs[TABLE].name)  # type: ignore[union-attr]
                yield Site(name, "table", TABLE_SCHEME, (str(node.name),), name)

    def _is_exact(self, rows: ir.Value) -> bool:
        """Whether rows of a table are given to the caller, or multiply something, as sines of angles do."""
        if rows.is_graph_output():
            return True
        for use in rows.uses():
            moves = operator(use.node) in (*self.row.passing, "Unsqueeze")
            factors = [value for value in use.node.inputs if value is not None and constant(value) is None]
            if operator(use.node) == "Mul" and len(factors) > 1:
                return True
            if moves and any(self._is_exact(made) for made in use.node.outputs):
                return True
        return False


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name == "FLOAT"
