"""The tensors of a net that are rounded, and the operators that stay in float: what a placement says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from tersor.graph.net import attribute, constant
from tersor.graph.placement.engines import Engine
from tersor.graph.scheme import Precision, Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BIAS", "TABLE", "WEIGHT", "Kept", "Kind", "Placement", "Site", "weight_axis"]

Kind: TypeAlias = Literal["activation", "weight", "bias", "table"]
WEIGHT, BIAS = 1, 2
"""Which input of an operator."""
TABLE = 0
"""Which input of a Gather."""


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor that is rounded.

    value  its name in the graph
    nodes  the operators that read it rounded; one for weights, biases and tables
    group  the value whose scale it has: its own, or that of a value that it shares a grid with
    returned  whether the caller of the net gets it rounded too
    """

    value: str
    kind: Kind
    scheme: Scheme
    nodes: tuple[str, ...]
    group: str
    returned: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """An operator that could run on integers and stays in float, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """All sites of a net for one engine, in the order of the graph.

    integer  names of the operators that run on integers, or on float activations with weights that are integers
    kept     those with weights, or that multiply, that do not
    """

    engine: Engine
    sites: tuple[Site, ...]
    integer: tuple[str, ...]
    kept: tuple[Kept, ...]
    precision: Precision

    @cached_property
    def activations(self) -> dict[str, Site]:
        """By value."""
        return {site.value: site for site in self.sites if site.kind == "activation"}

    @cached_property
    def weights(self) -> dict[str, Site]:
        """By node."""
        return {site.nodes[0]: site for site in self.sites if site.kind == "weight"}

    def of_weights(self, nodes: Collection[str]) -> Placement:
        """Return the placement with no other weights than those of `nodes`."""
        return replace(self, sites=tuple(s for s in self.sites if s.kind != "weight" or s.nodes[0] in nodes))

    @cached_property
    def biases(self) -> dict[str, Site]:
        """By node."""
        return {site.nodes[0]: site for site in self.sites if site.kind == "bias"}

    @cached_property
    def tables(self) -> dict[str, Site]:
        """Matrices of which rows are taken, by the Gather that takes them; rows are rounded, each with its scale."""
        return {site.nodes[0]: site for site in self.sites if site.kind == "table"}


def weight_axis(node: ir.Node) -> int | None:
    """Return the axis of the outputs in the weight of an operator; None: one scale for all.

    Conv has [outputs, …], ConvTranspose [inputs, outputs, …], Gemm [inputs, outputs] or that transposed, MatMul
    [inputs, outputs]; a stack of matrices gets one scale.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    weight = constant(node.inputs[WEIGHT])
    return 1 if weight is not None and weight.ndim == 2 else None
