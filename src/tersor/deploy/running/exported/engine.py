"""torch inside an engine's process: tensors in, tensors out, of a net that torch.export saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.errors import EngineError, FormatError, MissingError
from tersor.deploy.running.datatypes import KINDS
from tersor.deploy.running.exported.archive import rewritten
from tersor.deploy.running.nets import Array, Axis, NetEngine
from tersor.deploy.running.worker import RefusedError, first_line

__all__ = ["opened"]

TYPES = {
    "torch.float32": "FP32", "torch.float64": "FP64", "torch.float16": "FP16", "torch.int64": "INT64",
    "torch.int32": "INT32", "torch.int16": "INT16", "torch.int8": "INT8", "torch.uint8": "UINT8", "torch.bool": "BOOL",
}  # fmt: skip
"""torch's element types → those of the Open Inference Protocol."""


class _ExportedNet:
    """A .pt2 file; a `nets.Net`."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            import torch  # noqa: PLC0415 (an optional engine, in this process alone)
            from torch.utils import _pytree as trees  # noqa: PLC0415 (nothing public takes trees apart)
        except ImportError as error:
            raise MissingError("engine torch needs torch: pip install 'tersor[torch]'") from error
        torch.set_num_threads(int(options.get("threads", 1)))
        logging.getLogger("torch").setLevel(logging.ERROR)
        path = Path(options["path"])
        program = torch.export.load(rewritten(path))
        for node in program.graph.nodes:
            # Requests run side by side, and one must not change what the next one is answered with.
            changes = node.op == "call_function" and str(node.target).rpartition(".")[0].endswith("_")
            if changes and node.args and getattr(node.args[0], "op", "") == "placeholder":
                raise FormatError(f"{path.name}: {node.target} changes what the net holds; export it in eval mode")
        self._torch, self._trees = torch, trees
        self._net, self._spec = program.module(), program.call_spec.in_spec
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        signature = program.graph_signature
        self.inputs = dict(_declared(path, name, values.get(name)) for name in signature.user_inputs)
        self.outputs = dict(_declared(path, name, values.get(name)) for name in signature.user_outputs)
        if len(self.outputs) != len(signature.user_outputs):
            raise FormatError(f"{path.name}: an output is there twice")

    def compute(self, wanted: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run it once."""
        self._check(feeds)
        leaves = [self._torch.tensor(feeds[name]) for name in self.inputs]
        args, named = self._trees.tree_unflatten(leaves, self._spec)
        try:
            with self._torch.inference_mode():
                made = self._trees.tree_leaves(self._net(*args, **named))
        except IndexError as error:  # a place in a table that has no such row
            raise RefusedError(first_line(error)) from error
        except Exception as error:  # its operators raise what they like
            raise EngineError(first_line(error)) from error
        found = dict(zip(self.outputs, made, strict=True))
        return [np.ascontiguousarray(found[name].numpy()) for name in wanted]

    def _check(self, feeds: Mapping[str, Array]) -> None:
        """Refuse inputs that do not fit each other: axes of one name are of one size, as torch.export has proved."""
        sizes: dict[str, int] = {}
        for name, (_, _, axes) in self.inputs.items():
            for axis, size in zip(axes, feeds[name].shape, strict=True):
                if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                    raise RefusedError(f"input {name}: {axis} is {size} here, and {sizes[axis]} in another input")


def _declared(path: Path, name: object, value: Any) -> tuple[str, tuple[str, str, tuple[Axis, ...]]]:
    kind = TYPES.get(str(getattr(value, "dtype", None)))
    if not isinstance(name, str) or kind is None:
        raise FormatError(
            f"{path.name}: input or output {str(name)[:40]} is {getattr(value, 'dtype', 'no tensor')}; "
            f"there are tensors of {', '.join(one.removeprefix('torch.') for one in TYPES)}"
        )
    return name, (kind, KINDS[kind], tuple(size if isinstance(size, int) else str(size) for size in value.shape))


def opened(options: dict[str, Any]) -> NetEngine:
    """Load the .pt2 file that `path` names; FormatError where torch would execute more of it than its operators."""
    return NetEngine(_ExportedNet(options), "pytorch_exported", options)
