"""From a PyTorch net to its ONNX graph: exported at rest, with the first axis free, and checked against the net."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import FormatError, SchemeError, UnsupportedError
from tersor.graph.net import Array, Net
from tersor.graph.sessions import Session, feeds_of
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch", "torch")

__all__ = ["AGREEMENT", "capture"]

AGREEMENT = 1e-3
"""Largest difference between net and graph that is taken for rounding, as a share of the largest output."""
OPSET = 20

log = logging.getLogger(__name__)


def capture(net: Module, example_inputs: Any, *, name: str | None = None) -> Net:
    """Return the graph of a net in evaluation mode; the net itself, its mode and its device stay as they are.

    example_inputs  a tensor, a tuple of them, or a mapping of keywords; the first axis is the batch, and may have any
                    size in the graph wherever the net allows that
    Raises UnsupportedError where torch cannot export it, FormatError where the graph computes something else.
    """
    if not isinstance(net, torch.nn.Module):
        raise SchemeError(f"a net is a torch.nn.Module, got {type(net).__name__}")
    arguments, keywords = _arguments(example_inputs)
    was_training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with torch.no_grad(), _quiet():
            made = net(*arguments, **keywords)
            program = _exported(net, arguments, keywords)
    finally:
        for module in was_training:
            module.training = True
    captured = Net.parse(program, name or type(net).__name__)
    captured = Net(captured.model, name or type(net).__name__)
    _check(captured, [*arguments, *keywords.values()], made)
    return captured


def _arguments(example: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return positional and keyword tensors, two items in every batch of one: torch takes a one for a fixed size."""
    keywords = dict(example) if isinstance(example, Mapping) else {}
    arguments = () if keywords else tuple(example) if isinstance(example, (tuple, list)) else (example,)
    for item in (*arguments, *keywords.values()):
        if not isinstance(item, torch.Tensor):
            raise SchemeError(f"example inputs are tensors, got {type(item).__name__}")
        if item.ndim == 0 or not item.numel():
            raise SchemeError(f"an example input has the shape {list(item.shape)}: it needs a batch of at least one")
    twice = {key: _twice(item) for key, item in keywords.items()}
    return tuple(_twice(item) for item in arguments), twice


def _twice(item: Tensor) -> Tensor:
    return torch.cat((item, item)) if len(item) == 1 else item


def _exported(net: Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> bytes:
    """Return the bytes of the graph: with a free batch if that can be, else with the one of the example."""
    failure: Exception | None = None
    for free in (True, False):
        batch = {0: torch.export.Dim("batch")} if free else None
        shapes: Any = dict.fromkeys(keywords, batch) if keywords else tuple(batch for _ in arguments)
        try:
            program = torch.onnx.export(
                net,
                arguments,
                kwargs=keywords or None,
                dynamo=True,
                dynamic_shapes=shapes if free else None,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch raises a class for each of its stages
            failure = failure or error
            continue
        if not free:
            log.warning("the batch of %s is fixed to %d: %s", type(net).__name__, _batch(arguments, keywords), failure)
        assert program is not None
        data: bytes = program.model_proto.SerializeToString()
        return data
    raise UnsupportedError(
        f"{type(net).__name__} cannot be exported: {_reason(failure)}. What torch.export takes can be "
        "quantized: move branches on values of tensors and calls into other libraries out of forward"
    ) from failure


def _batch(arguments: Sequence[Tensor], keywords: Mapping[str, Tensor]) -> int:
    return len(next(iter((*arguments, *keywords.values()))))


def _reason(error: Exception | None) -> str:
    """Return what went wrong at the root, in one line."""
    while error is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _check(captured: Net, inputs: Sequence[Tensor], made: Any) -> None:
    """Run the graph on the example and compare."""
    wanted = [item.detach().cpu().numpy() for item in _tensors(made)]
    batch = tuple(item.detach().cpu() for item in inputs)
    found = Session(captured, optimized=False).run(feeds_of(captured, batch, "the example"))
    for (name, ours), theirs in zip(found.items(), wanted, strict=False):
        off = _difference(ours, theirs)
        if not off <= AGREEMENT:
            raise FormatError(
                f"{captured.name}: the exported graph gives another {name} than the net, by {off:.2g} of its largest "
                "value: does forward depend on random numbers, or on state?"
            )


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    largest = float(np.abs(theirs).max(initial=0)) or 1.0
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0)) / largest


def _tensors(made: Any) -> list[Tensor]:
    if isinstance(made, torch.Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made if isinstance(made, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter tells of its own progress and of other packages away from users."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
