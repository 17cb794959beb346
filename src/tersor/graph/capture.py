"""From a PyTorch net to its ONNX graph: exported at rest, with the first axis free, and checked against the net."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import FormatError, SchemeError, UnsupportedError
from tersor.graph.net import Array, Net
from tersor.graph.sessions import Session, feeds_of
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from onnx_ir.passes import common as passes
    from torch import Tensor
    from torch.nn import Module
else:
    torch, passes = LazyModule("torch", "torch"), LazyModule("onnx_ir.passes.common", "onnx")

__all__ = ["AGREEMENT", "capture"]

AGREEMENT = 1e-3
"""Largest difference between net and graph that is taken for rounding, as a share of the largest output."""
OPSET = 20
SCOPES = "pkg.torch.onnx.name_scopes"
"""What the exporter calls the modules that an operator came from, the innermost but one last."""

log = logging.getLogger(__name__)


def capture(net: Module, example_inputs: Any, *, name: str | None = None) -> Net:
    """Return the graph of a net in evaluation mode; the net itself, its mode and its device stay as they are.

    example_inputs  a tensor, a tuple of them, or a mapping of keywords; the first axis is the batch, and may have any
                    size in the graph wherever the net allows that
    Raises UnsupportedError where torch cannot export it, FormatError where the graph computes something else.
    """
    if not isinstance(net, torch.nn.Module):
        raise SchemeError(f"a net is a torch.nn.Module, got {type(net).__name__}")
    inputs = _Inputs.of(example_inputs)
    if any(tensor.dtype == torch.bfloat16 for tensor in (*net.parameters(), *net.buffers(), *inputs.all)):
        raise UnsupportedError(
            f"{type(net).__name__} is in bfloat16, with which ONNX Runtime does not compute: give net.float(), and its "
            "inputs so"
        )
    where = name or type(net).__name__
    was_training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with torch.no_grad(), _quiet():
            made = _run(net, inputs)
            program, seen = _exported(net, inputs)
            made_of_seen = made if seen is inputs else _run(net, seen)
    finally:
        for module in was_training:
            module.training = True
    captured = _named_by_modules(Net(Net.parse(program, where).model, where))
    _check(captured, seen, made_of_seen)
    if seen is not inputs:
        _check(captured, inputs, made)
    return captured


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """What forward is called with."""

    arguments: tuple[Tensor, ...]
    keywords: dict[str, Tensor]

    @classmethod
    def of(cls, example: Any) -> _Inputs:
        keywords = dict(example) if isinstance(example, Mapping) else {}
        arguments = () if keywords else tuple(example) if isinstance(example, (tuple, list)) else (example,)
        made = cls(arguments, keywords)
        if not made.all:
            raise SchemeError("there are no example inputs: give a tensor, a tuple of them, or a mapping of keywords")
        for item in made.all:
            if not isinstance(item, torch.Tensor):
                raise SchemeError(f"example inputs are tensors, got {type(item).__name__}")
            if item.ndim == 0 or not item.numel():
                raise SchemeError(
                    f"an example input has the shape {list(item.shape)}: it needs a batch of at least one"
                )
        return made

    @property
    def all(self) -> tuple[Tensor, ...]:
        """All tensors."""
        return (*self.arguments, *self.keywords.values())

    def twice(self) -> _Inputs:
        """Return them with two items in every batch of one: torch takes a one for a fixed size."""
        if all(len(item) != 1 for item in self.all):
            return self
        keywords = {key: _twice(item) for key, item in self.keywords.items()}
        return _Inputs(tuple(_twice(item) for item in self.arguments), keywords)


def _twice(item: Tensor) -> Tensor:
    return torch.cat((item, item)) if len(item) == 1 else item


def _run(net: Module, inputs: _Inputs) -> Any:
    try:
        return net(*inputs.arguments, **inputs.keywords)
    except Exception as error:  # whatever forward raises
        shapes = ", ".join(str(list(item.shape)) for item in inputs.all)
        raise SchemeError(
            f"{type(net).__name__} cannot be run on example inputs of {shapes}: {_reason(error)}"
        ) from error


def _exported(net: Module, inputs: _Inputs) -> tuple[bytes, _Inputs]:
    """Return the bytes of the graph, and what it was made with: with a free batch if that can be, else with its own."""
    failure: Exception | None = None
    for free in (True, False):
        seen = inputs.twice() if free else inputs
        try:
            program = torch.onnx.export(
                net,
                seen.arguments,
                kwargs=seen.keywords or None,
                dynamo=True,
                dynamic_shapes=_free_batch(net, seen) if free else None,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch raises a class for each of its stages
            failure = failure or error
            continue
        if not free:
            size = len(seen.all[0])
            log.warning("the batch of %s is fixed to %d: %s", type(net).__name__, size, _reason(failure))
        assert program is not None
        data: bytes = program.model_proto.SerializeToString()
        return data, seen
    raise UnsupportedError(
        f"{type(net).__name__} cannot be exported: {_reason(failure)}. What torch.export takes can be "
        "quantized: move branches on values of tensors and calls into other libraries out of forward"
    ) from failure


def _free_batch(net: Module, inputs: _Inputs) -> dict[str, Any]:
    """Return what torch wants to know of each parameter of forward; what *args takes is nested.

    What **keywords takes cannot be told: torch 2.13 looks for it nested first, and then flat.
    """
    bound = inspect.signature(net.forward).bind(*inputs.arguments, **inputs.keywords)
    batch = {0: torch.export.Dim("batch")}
    return {
        name: tuple(batch for _ in given) if isinstance(given, tuple) else batch
        for name, given in bound.arguments.items()
    }


def _reason(error: Exception | None) -> str:
    """Return what went wrong at the root, in one line."""
    while error is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _check(captured: Net, inputs: _Inputs, made: Any) -> None:
    """Run the graph on the example and compare."""
    wanted = [item.detach().cpu().numpy() for item in _tensors(made)]
    found = Session(captured, optimized=False).run(
        feeds_of(captured, inputs.keywords or inputs.arguments, "the example")
    )
    if len(found) != len(wanted):
        raise UnsupportedError(
            f"{captured.name}: forward returns {type(made).__name__} with {len(wanted)} tensors, the graph "
            f"{len(found)}: return a tensor, or a tuple, list or mapping of different ones"
        )
    for (name, ours), theirs in zip(found.items(), wanted, strict=True):
        off = _difference(ours, theirs)
        if not off <= AGREEMENT:
            raise FormatError(
                f"{captured.name}: the exported graph gives another {name} than the net, by {off:.2g} of its largest "
                "value: does forward depend on random numbers, or on state?"
            )


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0)) or 1.0
    differing = ours != theirs  # infinities, as of scores that are masked, have no distance from themselves
    return float(np.abs(ours[differing].astype(np.float64) - theirs[differing]).max(initial=0)) / largest


def _tensors(made: Any) -> list[Tensor]:
    if isinstance(made, torch.Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made if isinstance(made, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter tells of its own progress and of other packages away from users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _named_by_modules(net: Net) -> Net:
    """Return the net with operators called after the weight they read, or else the module that they came from.

    The exporter numbers operators (node_Conv_146), and leaves in each the lines of the program it came from, with their
    path: the one says nothing to whoever wrote the net, the other is nobody's business.
    """
    made = net.copy()
    taken: set[str] = set()
    for node in made.nodes:
        wanted = _module(node)
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        node.name = name
        taken.add(name)
    passes.ClearMetadataAndDocStringPass()(made.model)
    return made


def _module(node: ir.Node) -> str:
    """Return `layer1.0.conv1` for what reads layer1.0.conv1.weight, `layer1.0.add` for another operator of layer1.0."""
    for value in node.inputs[1:2]:
        if value is not None and value.is_initializer() and str(value.name).endswith(".weight"):
            return str(value.name).removesuffix(".weight")
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    inside = [str(scope) for scope in scopes[:-1] if scope] if isinstance(scopes, list) else []
    return ".".join([*inside[-1:], node.op_type.lower()])
