"""From a net on integers back to one that trains: the module of its float graph, with fake quantizers in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import SchemeError
from tersor.graph.net import Net
from tersor.graph.placement.sites import BIAS, TABLE, WEIGHT, Site
from tersor.graph.ptq import QuantizedNet
from tersor.graph.scheme import Quantizer
from tersor.graph.training.fake import (
    fake_quantize,
    fake_quantize_at_run_time,
    fake_quantize_bias,
    fake_quantize_weight,
)
from tersor.graph.training.module import to_torch
from tersor.graph.training.norms import conv_norm, folded_bias, folded_weight, norm_factor
from tersor.graph.training.places import QUANTIZERS, at_the_top, put, stored_values
from tersor.graph.training.sources import start_of
from tersor.graph.weights import RoundedWeight
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor, fx
else:
    torch = LazyModule("torch", "torch")

__all__ = ["prepare"]

SAME = 1e-3
"""Share of the largest weight by which folding in another precision may move one."""


def prepare(
    quantized: QuantizedNet, *, norms: Net | None = None, trained: Collection[str] | None = None
) -> fx.GraphModule:
    """Return a module that rounds where the engine will, and trains; at rest it computes what `quantized.net` computes.

    Training starts from the weights that PTQ rounded to: from the float ones it would have to find them again.

    norms    the net before its batch norms were folded: they are then trained too, by the statistics of each batch
             until `freeze_norms`, and start in float, without what PTQ did to weights and biases. Without it the folded
             weights are trained
    trained  as for `to_torch`
    Raises SchemeError where `norms` is not the net that was quantized, or that was equalized.
    """
    preparing = _Preparing(quantized, to_torch(start_of(quantized, rounded=norms is None).model, trained=trained))
    if norms is not None:
        preparing.unfold(norms)
    preparing.insert()
    preparing.module.recompile()
    return preparing.module


class _Preparing:
    def __init__(self, quantized: QuantizedNet, module: fx.GraphModule) -> None:
        self.quantized, self.module = quantized, module
        self.steps: dict[str, tuple[fx.Node, fx.Node]] = {}
        """Group of activations, or node of a weight → base and shift."""
        self.shared: dict[tuple[fx.Node, int], str] = {}
        """A weight and what became of it → the first operator that reads it so, whose step is that of all."""
        self.read: dict[str, str] = {}
        """Node → the group of the activation that it reads rounded."""
        self.unfolded: dict[str, Tensor] = {}
        """What the net before folding has stored, by ONNX name."""

    def call(self, node: str) -> fx.Node:
        """Return the call that stands for an ONNX node."""
        made: fx.Node
        for made in self.module.graph.nodes:
            if made.op == "call_function" and made.meta.get("node") == node:
                return made
        raise SchemeError(
            f"{self.quantized.source.name} has no operator {node!r} that is run: all it reads is constant"
        )

    def insert(self) -> None:
        values = {node.meta["value"]: node for node in self.module.graph.nodes if "value" in node.meta}
        for value, site in self.quantized.placement.activations.items():
            self._activation(values[value], site, self.quantized.activations[value])
        for node, site in self.quantized.placement.weights.items():
            self._weight(self.call(node), WEIGHT, site, self.quantized.weights[node])
        for node, site in self.quantized.placement.tables.items():
            self._weight(self.call(node), TABLE, site, self.quantized.tables[node])
        if self.quantized.placement.precision.activations == "dynamic":
            self._round_at_run_time([self.call(node) for node in self.quantized.placement.weights])
        for node in self.quantized.placement.biases:
            self._bias(self.call(node), node)

    def _activation(self, value: fx.Node, site: Site, quantizer: Quantizer) -> None:
        scheme = quantizer.scheme
        if scheme.axis is not None:
            raise SchemeError(
                f"{site.value}: an activation with a step for each channel cannot be trained; use one step"
            )
        readers = [node for node in self.module.graph.nodes if node in value.users and _reads(node, site)]
        if not readers:
            return
        base, shift = self._step(site.group, quantizer)
        with self.module.graph.inserting_before(readers[0]):
            grid = (int(quantizer.zero_point), scheme.lowest, scheme.highest)
            made = self.module.graph.call_function(fake_quantize, (value, base, shift, grid))
        made.meta |= {"site": site.value, "kind": "activation"}
        for reader in readers:
            reader.replace_input_with(value, made)
        self.read |= dict.fromkeys(site.nodes, site.group)

    def _round_at_run_time(self, calls: Sequence[fx.Node]) -> None:
        made: dict[fx.Node, fx.Node] = {}
        for call in calls:
            source = call.args[0]
            assert isinstance(source, torch.fx.Node)
            if source not in made:
                with self.module.graph.inserting_before(call):
                    made[source] = self.module.graph.call_function(fake_quantize_at_run_time, (source,))
            call.update_arg(0, made[source])

    def _weight(self, call: fx.Node, place: int, site: Site, rounded: RoundedWeight) -> None:
        scheme, weight = rounded.quantizer.scheme, call.args[place]
        assert isinstance(weight, torch.fx.Node)
        first = self.shared.setdefault((weight, id(rounded)), site.nodes[0])
        base, shift = self.steps[f"{site.nodes[0]}.weight"] = self._step(f"{first}.weight", rounded.quantizer)
        with self.module.graph.inserting_before(call):
            grid = (0, scheme.lowest, scheme.highest)
            given = (weight, base, shift, grid, scheme.axis, scheme.block)
            made = self.module.graph.call_function(fake_quantize_weight, given)
        made.meta |= {"site": site.nodes[0], "kind": site.kind}
        call.update_arg(place, made)

    def _bias(self, call: fx.Node, node: str) -> None:
        group = self.read.get(node)
        bias = call.args[BIAS] if len(call.args) > BIAS else None
        quantizer = self.quantized.weights[node].quantizer
        if group is None or not isinstance(bias, torch.fx.Node) or quantizer.scheme.axis is None:
            return
        with self.module.graph.inserting_before(call):
            steps = (*self.steps[group], *self.steps[f"{node}.weight"])
            made = self.module.graph.call_function(fake_quantize_bias, (bias, *steps))
        made.meta |= {"site": node, "kind": "bias"}
        call.update_arg(BIAS, made)

    def _step(self, name: str, quantizer: Quantizer) -> tuple[fx.Node, fx.Node]:
        """Return base and shift of a step, once for each name; both stand at the top of the graph."""
        if name not in self.steps:
            base = torch.from_numpy(np.array(quantizer.scale, np.float32))
            place = f"{QUANTIZERS}.{name.replace('.', '/')}"
            keys = (
                put(self.module, f"{place}.base", base, trained=False),
                put(self.module, f"{place}.shift", torch.zeros_like(base), trained=True),
            )
            with at_the_top(self.module.graph):
                self.steps[name] = (self.module.graph.get_attr(keys[0]), self.module.graph.get_attr(keys[1]))
        return self.steps[name]

    def unfold(self, norms: Net) -> None:
        """Give every convolution whose norm was folded its own weight back, and the norm beside it."""
        before = {str(node.name): node for node in norms.nodes}
        plain = to_torch(norms.model)
        state = plain.state_dict()
        self.unfolded = {name: state[key] for name, key in stored_values(plain)}
        found = 0
        for node in list(self.module.graph.nodes):
            origin = before.get(node.meta.get("node", ""))
            norm = None if origin is None or node.op != "call_function" else _norm_after(origin)
            kept = any(user.meta.get("operator") == "BatchNormalization" for user in node.users)
            if origin is not None and norm is not None and node.meta["operator"] == "Conv" and not kept:
                self._unfold(node, origin, norm)
                found += 1
        if not found:
            raise SchemeError(
                f"{norms.name}: no Conv of it with a BatchNormalization behind has the name of one in "
                f"{self.quantized.source.name}; give the net that was quantized, as it was before"
            )

    def _unfold(self, call: fx.Node, conv: ir.Node, norm: ir.Node) -> None:
        graph, x = self.module.graph, call.args[0]
        numbers = {"epsilon": 1e-5, "momentum": 0.9} | {
            name: norm.attributes[name].as_float() for name in ("epsilon", "momentum") if name in norm.attributes
        }
        self._compare(call, conv, norm, numbers["epsilon"])
        call.args = (x,)
        for unused in [node for node in graph.nodes if node.op == "get_attr" and not node.users]:
            graph.erase_node(unused)
            _remove(self.module, str(unused.target))
        with at_the_top(graph):
            training = graph.create_node("get_attr", "training")
            weight, gamma, beta = (self._tensor(node, place, True) for node, place in ((conv, 1), (norm, 1), (norm, 2)))
            mean, var = (self._tensor(norm, place, False) for place in (3, 4))
            own = self._tensor(conv, BIAS, True) if len(conv.inputs) > BIAS and conv.inputs[BIAS] is not None else None
        with graph.inserting_before(call):
            factor = graph.call_function(norm_factor, (gamma, var, numbers["epsilon"]))
            folded = graph.call_function(folded_weight, (weight, factor))
            bias = graph.call_function(folded_bias, (factor, beta, mean, own))
            more: dict[str, Any] = {
                "factor": factor,
                "norm": (gamma, beta, mean, var),
                "own_bias": own,
                "training": training,
            }
            made = graph.call_function(conv_norm, (x, folded, bias), {**call.kwargs, **numbers, **more})
        made.meta |= call.meta
        call.replace_all_uses_with(made)
        graph.erase_node(call)

    def _compare(self, call: fx.Node, conv: ir.Node, norm: ir.Node, epsilon: float) -> None:
        """Refuse a norm that does not fold into the weight that was quantized."""
        stored = call.args[WEIGHT]
        assert isinstance(stored, torch.fx.Node)
        weight, gamma, var = (self._stored(node, place) for node, place in ((conv, 1), (norm, 1), (norm, 4)))
        folded = folded_weight(weight, norm_factor(gamma, var, epsilon))
        wanted = self.module.state_dict()[str(stored.target)]
        if wanted.shape != folded.shape or float((folded - wanted).abs().max()) > SAME * float(wanted.abs().max()):
            raise SchemeError(
                f"{conv.name}: its weight with its norm in it is not the one that was quantized; to train norms, "
                "quantize with Recipe(equalize=False), and give the net as it was before"
            )

    def _stored(self, node: ir.Node, place: int) -> Tensor:
        value = node.inputs[place]
        assert value is not None
        return self.unfolded[str(value.name)]

    def _tensor(self, node: ir.Node, place: int, trained: bool) -> fx.Node:
        """Return a stored value of the net before folding, as a parameter or buffer under its name."""
        name = str(getattr(node.inputs[place], "name", ""))
        tensor = self._stored(node, place).detach().clone()
        return self.module.graph.get_attr(put(self.module, name, tensor, trained=trained))


def _reads(node: fx.Node, site: Site) -> bool:
    return site.returned if node.op == "output" else node.meta.get("node") in site.nodes


def _remove(module: fx.GraphModule, key: str) -> None:
    owner, _, leaf = key.rpartition(".")
    delattr(module.get_submodule(owner), leaf)


def _norm_after(conv: ir.Node) -> ir.Node | None:
    uses = list(conv.outputs[0].uses())
    node: Any = uses[0].node if len(uses) == 1 else None
    return node if node is not None and node.op_type == "BatchNormalization" else None
