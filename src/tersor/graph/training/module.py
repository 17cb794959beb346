"""An ONNX graph as a torch module: one call for every operator, and weights under their ONNX names."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from tersor.core.errors import UnsupportedError
from tersor.graph.training.ops.arguments import RANGES
from tersor.graph.training.ops.table import OPS, Operator
from tersor.graph.training.places import at_the_top, identifier, put, stored_values
from tersor.graph.training.tensors import constants, is_state, is_trained, to_ir, to_torch_tensor
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from onnx_ir.passes import common as passes
    from torch import Tensor, fx
else:
    torch, fx = LazyModule("torch", "torch"), LazyModule("torch.fx", "torch")
    ir, passes = LazyModule("onnx_ir", "onnx"), LazyModule("onnx_ir.passes.common", "onnx")

__all__ = ["OPSETS", "to_onnx_weights", "to_torch"]

OPSETS = range(13, 25)
"""Versions of the standard that the table agrees with."""
LARGEST_FOLDED = 1 << 24
"""Elements of a result that is computed ahead; larger ones are computed each time."""
SELECTING = frozenset(("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"))
"""What only moves sizes about, so that one that it picks does not depend on the others."""
PROBES = (7919, 104729)
"""Two sizes that no axis has: what comes out the same with both does not depend on the free axes."""


def to_torch(model: ir.Model, *, trained: Collection[str] | None = None) -> fx.GraphModule:
    """Return a module that computes what the graph computes; called with its inputs in their order.

    trained  names of the initializers that become parameters. Without it: all floats but masks, statistics, scales of
             quantizers and single numbers outside of layers. What is not trained becomes a buffer

    The module returns one tensor, or a tuple of them. In training mode batch norms use and update statistics, and
    dropout drops. Nodes carry in `meta` what they stand for: "value", the ONNX name of what they make, and "node" and
    "operator", the name and type of the ONNX node. Raises UnsupportedError for what the table does not have, by name.
    """
    model = _plain(model)
    _check(model)
    return _Builder(model, None if trained is None else frozenset(trained)).built()


def to_onnx_weights(module: fx.GraphModule, model: ir.Model) -> ir.Model:
    """Return a copy of the graph that `module` was made from with the module's parameters and statistics in it."""
    made = _plain(model)
    state = module.state_dict()
    keys = dict(stored_values(module))
    for name, numbers in list(constants(made.graph)):
        if name not in keys or numbers.dtype.is_integer():
            continue
        tensor = to_ir(state[keys[name]], numbers, name)
        if name in made.graph.initializers:
            made.graph.initializers[name].const_value = tensor
        else:
            node = next(node for node in made.graph if node.outputs[0].name == name)
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", tensor)
    return made


def _plain(model: ir.Model) -> ir.Model:
    """Return a copy without functions, in which every size that follows from the inputs is known."""
    made = model.clone()
    if made.functions:
        passes.InlinePass()(made)
    if any(value.shape is None for node in made.graph for value in node.outputs):
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(made)
    return made


def _check(model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset not in OPSETS:
        raise UnsupportedError(
            f"opset {opset}: a net is trained from opsets {OPSETS[0]} to {OPSETS[-1]}; convert it with "
            "onnx.version_converter, or export it again"
        )
    for node in model.graph:
        if node.op_type == "Constant" and not node.domain:
            continue
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        row = None if node.domain else OPS.get(node.op_type)
        if row is None:
            raise _unsupported(node, f"{kind} has no row in the table of operators that can be trained")
        if not row.several and any(_is_used(value) for value in node.outputs[1:]):
            raise _unsupported(node, f"only the first output of {kind} can be used")
        for name, attribute in node.attributes.items():
            if attribute.value not in row.only.get(name, (attribute.value,)):
                raise _unsupported(node, f"{kind} with {name} = {attribute.value!r} cannot be trained")


def _unsupported(node: ir.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"node {node.name!r}: {reason}; express it by other operators, keep it out of the net that is trained, or "
        "quantize without training"
    )


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


class _Builder:
    """Builds the fx graph node by node; `known` are values that need no run, `made` those of the graph so far."""

    def __init__(self, model: ir.Model, trained: frozenset[str] | None) -> None:
        self.model = model
        self.trained = trained
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.known: dict[str, Tensor] = {}
        self.weights: dict[str, tuple[Tensor, bool]] = {}
        self.sizes: dict[str, tuple[Tensor, Tensor]] = {}
        self.made: dict[str, fx.Node] = {}
        self.training: fx.Node | None = None

    def built(self) -> fx.GraphModule:
        graph = self.model.graph
        taken: set[str] = {"self"}
        for value in graph.inputs:
            if value.name not in graph.initializers:
                entry = self.graph.placeholder(identifier(str(value.name), taken))
                entry.meta["value"] = str(value.name)
                self.made[str(value.name)] = entry
        self._take_constants()
        for node in graph:
            if node.op_type != "Constant":
                self._add(node)
        outputs = [self._node(str(value.name)) for value in graph.outputs]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        return fx.GraphModule(self.root, self.graph, "TrainableNet")

    def _take_constants(self) -> None:
        values = {str(value.name): value for node in self.model.graph for value in node.outputs}
        values |= {str(name): value for name, value in self.model.graph.initializers.items()}
        for name, numbers in constants(self.model.graph):
            value, tensor = values[name], to_torch_tensor(numbers, name)
            trained = is_trained(value, numbers) if self.trained is None else name in self.trained
            if trained or is_state(value):
                self.weights[name] = tensor, trained
            else:
                self.known[name] = tensor

    def _node(self, name: str) -> fx.Node:
        """Return the fx node of a value; what is known or a weight enters the graph when it is first needed."""
        if name not in self.made:
            tensor, trained = self.weights.get(name) or (self.known[name], False)
            node = self.graph.get_attr(put(self.root, name, tensor, trained=trained))
            node.meta["value"] = name
            self.made[name] = node
        return self.made[name]

    def _add(self, node: ir.Node) -> None:
        """Compute a node ahead where its inputs are known, else add its call."""
        row = OPS[node.op_type]
        function: Callable[..., Any] = getattr(torch, row.function) if isinstance(row.function, str) else row.function
        names = [None if value is None else str(value.name) for value in node.inputs]
        keywords, training = self._keywords(node, row)
        if self._fold(node, function, names, keywords):
            return
        places = [] if isinstance(row.function, str) else list(inspect.signature(row.function).parameters)
        arguments = [
            self._argument(name, place < len(places) and places[place] in row.inline)
            for place, name in enumerate(names)
        ]
        if training:
            keywords["training"] = self._mode()
        call = self.graph.call_function(function, tuple(arguments), keywords)
        call.meta |= {"node": str(node.name), "operator": node.op_type}
        for place, value in enumerate(node.outputs):
            if row.several and value.name:
                part = self.graph.call_function(operator.getitem, (call, place))
                part.meta |= call.meta | {"value": str(value.name)}
                self.made[str(value.name)] = part
            elif not place:
                call.meta["value"] = str(value.name)
                self.made[str(value.name)] = call

    def _argument(self, name: str | None, inline: bool) -> Any:
        if name is None:
            return None
        if inline and name in self.known:
            return self.known[name].tolist()
        return self._node(name)

    def _mode(self) -> fx.Node:
        """Return the node that reads whether the module trains."""
        if self.training is None:
            with at_the_top(self.graph):
                self.training = self.graph.create_node("get_attr", "training")
        return self.training

    def _keywords(self, node: ir.Node, row: Operator) -> tuple[dict[str, Any], bool]:
        """Return the attributes of a node and the facts that its function asks for; and whether it needs the mode."""
        found = {name: _plain_attribute(attribute) for name, attribute in node.attributes.items()}
        if isinstance(row.function, str):
            parameters: set[str] = set()
        else:
            parameters = set(inspect.signature(row.function).parameters)
        found = {name: value for name, value in found.items() if name not in row.ignored}
        unknown = sorted(set(found) - parameters)
        if unknown:
            raise _unsupported(node, f"{node.op_type} has attributes that are not known: {', '.join(unknown)}")
        if "outputs" in parameters:
            found["outputs"] = len(node.outputs)
        if "element" in parameters:
            number = _element(node)
            found["element"] = (*RANGES[number], number)
        return found, "training" in parameters

    def _fold(
        self, node: ir.Node, function: Callable[..., Any], names: list[str | None], keywords: dict[str, Any]
    ) -> bool:
        """Compute a node ahead; return whether that could be."""
        row = OPS[node.op_type]
        if row.random:
            return False
        if node.op_type == "Shape":
            return self._fold_shape(node, keywords)
        given = [None if name is None else self.known.get(name) for name in names]
        if all(name is None or name in self.known for name in names):
            if any(_elements(value) > LARGEST_FOLDED for value in node.outputs):
                return False
            with torch.no_grad():
                made = function(*given, **keywords)
            results = made if row.several else [made]
            self.known |= {str(value.name): part for value, part in zip(node.outputs, results, strict=False)}
            return True
        if node.op_type not in SELECTING or not all(
            name is None or name in self.known or name in self.sizes for name in names
        ):
            return False
        pair = [
            function(*[None if n is None else self._probed(n, probe) for n in names], **keywords) for probe in (0, 1)
        ]
        return self._learn(str(node.outputs[0].name), pair[0], pair[1])

    def _probed(self, name: str, probe: int) -> Tensor:
        return self.sizes[name][probe] if name in self.sizes else self.known[name]

    def _fold_shape(self, node: ir.Node, keywords: dict[str, Any]) -> bool:
        """Learn what is known of a shape; return whether all of it is."""
        source = node.inputs[0]
        if source is None or source.shape is None:
            return False
        dims = list(source.shape)[keywords.get("start", 0) : keywords.get("end")]
        first, second = (torch.tensor([d if isinstance(d, int) else probe for d in dims]).long() for probe in PROBES)
        return self._learn(str(node.outputs[0].name), first, second)

    def _learn(self, name: str, first: Tensor, second: Tensor) -> bool:
        if torch.equal(first, second):
            self.known[name] = first
            return True
        self.sizes[name] = first, second
        return False


def _plain_attribute(attribute: ir.Attr) -> Any:
    """Return an attribute as a number, a text or a list; a tensor of one element as that and its ONNX type."""
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return value.numpy().reshape(-1)[0].item(), int(value.dtype)
    return list(value) if isinstance(value, (tuple, list)) else value


def _element(node: ir.Node) -> int:
    """Return the ONNX type of what a QuantizeLinear makes."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    asked = node.attributes.get("output_dtype")
    if zero is not None:
        dtype = zero.dtype or (zero.const_value.dtype if zero.const_value is not None else None)
    else:
        dtype = ir.DataType(asked.as_int() if asked is not None and asked.as_int() else 2)
    if dtype is None or int(dtype) not in RANGES:
        raise _unsupported(node, "the type that it quantizes to is not known, or no integer of 4 to 32 bits")
    return int(dtype)


def _elements(value: ir.Value) -> int:
    """Return how many elements a value has, 0 where that is not known."""
    return 0 if value.shape is None or not value.shape.is_static() else math.prod(value.shape.numpy())
