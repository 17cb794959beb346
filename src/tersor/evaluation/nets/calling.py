"""Calling a net: inputs brought to its device, what it returns brought back as one matrix of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["Net", "Selector", "at_rest", "call", "inputs_for", "is_module", "scores_of"]

Net: TypeAlias = "Module | Callable[..., Any]"
Selector: TypeAlias = str | int | Callable[[Any], Any] | None
"""Which part of what a net returns holds the scores: a key, an index, or a function; None: it is plain to see."""


def is_module(net: object) -> bool:
    """Whether `net` is a torch module; MissingError without torch."""
    try:
        from torch.nn import Module  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingError("evaluating nets needs torch: pip install 'tersor[torch]'") from error
    return isinstance(net, Module)


@contextmanager
def at_rest(*nets: Net) -> Iterator[None]:
    """Switch modules to evaluation and gradients off, inside the block; each module's own state comes back after."""
    import torch  # noqa: PLC0415 (an extra)

    states = [(module, module.training) for net in nets if is_module(net) for module in net.modules()]  # type: ignore[union-attr]  # is_module
    for module, _ in states:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in states:
            module.training = was_training


def inputs_for(net: Net, inputs: Any) -> Any:
    """Return tensors (alone, or in tuples, lists and mappings) on the device of the net; arrays become tensors."""
    import torch  # noqa: PLC0415 (an extra)

    if isinstance(inputs, Mapping):
        return {key: inputs_for(net, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(inputs_for(net, value) for value in inputs)
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    if isinstance(inputs, torch.Tensor) and is_module(net):
        place = next(net.parameters(), None)  # type: ignore[union-attr]  # is_module
        place = place if place is not None else next(net.buffers(), None)  # type: ignore[union-attr]
        return inputs if place is None else inputs.to(place.device)
    return inputs


def call(net: Net, inputs: Any) -> Any:
    """Call the net: a mapping as keywords, a tuple or list as arguments, all else as the one argument."""
    moved = inputs_for(net, inputs)
    if isinstance(moved, Mapping):
        return net(**moved)
    return net(*moved) if isinstance(moved, (tuple, list)) else net(moved)


def scores_of(made: Any, output: Selector = None) -> Float32:
    """Return the scores in what a net returned: float32 [items, classes].

    Raises SchemeError where it is not plain which part is meant, ShapeError and FormatError (NaN, by item).
    """
    chosen = _chosen(made, output)
    values = chosen.detach().float().cpu().numpy() if hasattr(chosen, "detach") else np.asarray(chosen, np.float32)
    scores = np.ascontiguousarray(values, dtype=np.float32)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ShapeError(f"a net must return scores [items, classes], got {scores.shape}; choose a part with output=")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise FormatError(f"the scores of item {bad[0]} of a batch are not finite: the net is broken")
    return scores


def _chosen(made: Any, output: Selector) -> Any:
    if callable(output):
        return output(made)
    if output is not None:
        try:
            return getattr(made, output) if isinstance(output, str) and hasattr(made, output) else made[output]
        except (KeyError, IndexError, TypeError) as error:
            raise SchemeError(f"the net returns {_words(made)}, which has no {output!r}") from error
    if isinstance(made, np.ndarray) or hasattr(made, "detach"):
        return made
    if hasattr(made, "logits"):
        return made.logits
    parts = list(made.values()) if isinstance(made, Mapping) else made
    if isinstance(parts, Sequence) and len(parts) == 1:
        return parts[0]
    if isinstance(made, Mapping) and "logits" in made:
        return made["logits"]
    raise SchemeError(f"the net returns {_words(made)}; say with output= which part holds the scores")


def _words(made: object) -> str:
    if isinstance(made, Mapping):
        return f"a mapping with {', '.join(map(repr, list(made)[:6]))}"
    size = f" of {len(made)}" if isinstance(made, Sequence) else ""
    return f"a {type(made).__name__}{size}"
