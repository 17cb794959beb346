"""Where the tensors of a graph live in a module: nested by the dots of their names, as in the net they came from."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx
    from torch.nn import Module
else:
    torch, fx = LazyModule("torch", "torch"), LazyModule("torch.fx", "torch")

__all__ = ["QUANTIZERS", "at_the_top", "identifier", "put", "stored_values"]

QUANTIZERS = "quantizers"
"""Under this name a prepared module keeps `base` and `shift` of every quantizer."""


def put(root: Module, name: str, tensor: Tensor, *, trained: bool) -> str:
    """Register a parameter or buffer under an ONNX name, and return its key in the state dict.

    The key is the name, but for parts that a module cannot have: those get underscores.
    """
    taken = _bare_module()
    *path, leaf = [part or "_" for part in re.sub(r'["\\\r\n]', "_", name).split(".")]
    owner, key = root, []
    for wanted in path:
        part = wanted
        while hasattr(taken, part) or not isinstance(getattr(owner, part, torch.nn.Module()), torch.nn.Module):
            part += "_"
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
        key.append(part)
    while hasattr(taken, leaf) or hasattr(owner, leaf):
        leaf += "_"
    if trained:
        owner.register_parameter(leaf, torch.nn.Parameter(tensor))
    else:
        owner.register_buffer(leaf, tensor)
    return ".".join([*key, leaf])


@functools.cache
def _bare_module() -> fx.GraphModule:
    """Return a module whose attributes are those that every one has; making it compiles code."""
    return fx.GraphModule(torch.nn.Module(), fx.Graph())


def stored_values(module: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Yield ONNX name and state-dict key of every parameter and buffer that stands for a value of the graph."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and "value" in node.meta:
            yield node.meta["value"], str(node.target)


def at_the_top(graph: fx.Graph) -> contextlib.AbstractContextManager[object]:
    """Let nodes made in the block stand right behind the inputs."""
    first = next((node for node in graph.nodes if node.op != "placeholder"), None)
    return contextlib.nullcontext() if first is None else graph.inserting_before(first)


def identifier(name: str, taken: set[str]) -> str:
    """Return a Python name for an input that is not taken, and take it."""
    found = re.sub(r"\W", "_", name) or "_"
    if found[0].isdigit():
        found = f"_{found}"
    while found in taken:
        found += "_"
    taken.add(found)
    return found
