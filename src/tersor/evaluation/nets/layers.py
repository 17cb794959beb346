"""The error of every layer of a net: hooks on modules of equal names in two nets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.core.evaluation import LayerError
from tersor.evaluation.layers.weights import Sums
from tersor.evaluation.nets.calling import at_rest, call, inputs_for, is_module

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["compare_net_layers"]

ITEMS = 32


def compare_net_layers(net: Module, *, against: Module, inputs: Any, items: int = ITEMS) -> tuple[LayerError, ...]:
    """Return one row for each module that both nets call under the same name, in the order of calling.

    inputs  one batch, as the nets take it; of a tensor only the first `items` items are used, which bounds memory

    arriving_db compares what the module of `net` gives, with everything before it quantized too; entering_db what it
    gives on the input that the module of `against` had. It is None where the module does not take that input, and
    where nothing differs. sqnr_db, cosine and largest are those of `weight`, where both have one of the same shape
    that reads as floats. Of a module called more than once only the first call counts.
    """
    if not (is_module(net) and is_module(against)):
        raise SchemeError("layers can be compared of torch modules only; functions have none")
    names = _common(net, against)
    if not names:
        raise SchemeError("the two nets have no modules of the same name; layers cannot be paired")
    batch = inputs[:items] if hasattr(inputs, "shape") else inputs
    full: dict[str, tuple[Any, Any]] = {}
    rows: list[LayerError] = []
    with at_rest(net, against):
        with _watched(against, names, lambda name, given, made: full.setdefault(name, (given, made))):
            call(against, batch)
        arrived: dict[str, Sums] = {}

        def compare(name: str, _given: Any, made: Any) -> None:
            if name in full and name not in arrived:
                arrived[name] = _compared(full[name][1], made)

        with _watched(net, names, compare):
            call(net, batch)
        blocks: dict[str, int] = {}
        modules, references = dict(net.named_modules()), dict(against.named_modules())
        for name, (given, made) in full.items():
            if name in arrived:
                row = _row(name, modules[name], references[name], _place(name, blocks))
                entering = _entering(modules[name], given, made)
                rows.append(dataclasses.replace(row, entering_db=entering, arriving_db=arrived[name].sqnr_db))
    return tuple(rows)


def _common(net: Module, against: Module) -> set[str]:
    """Names of modules in both nets that have no children in at least one of them."""
    here, there = dict(net.named_modules()), dict(against.named_modules())
    return {
        name
        for name in here
        if name and name in there and not (_has_children(here[name]) and _has_children(there[name]))
    }


def _has_children(module: Module) -> bool:
    return next(module.children(), None) is not None


def _watched(net: Module, names: set[str], see: Callable[[str, Any, Any], object]) -> ExitStack:
    """Call `see` with name, arguments and result of each module that is called, until the block ends."""
    stack = ExitStack()
    for name, module in net.named_modules():
        if name in names:

            def hook(_module: Any, given: Any, made: Any, name: str = name) -> None:
                see(name, given, made)

            stack.callback(module.register_forward_hook(hook).remove)
    return stack


def _entering(module: Module, given: Any, made: Any) -> float | None:
    """SQNR of what the module makes of full-precision input; None where it does not take it."""
    try:
        return _compared(made, module(*inputs_for(module, given))).sqnr_db
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # another kind of input: quantized, packed, …
        return None


def _compared(wanted: Any, found: Any) -> Sums:
    sums = Sums()
    for one, other in zip(_tensors(wanted), _tensors(found), strict=False):
        if one.shape == other.shape:
            sums.add(one, other)
    return sums


def _tensors(made: Any) -> Iterator[Float32]:
    """Yield the tensors in what a module returned, as float32 [1, n]; quantized ones dequantized."""
    if isinstance(made, (tuple, list)):
        for part in made:
            yield from _tensors(part)
    elif hasattr(made, "detach"):
        plain = made.dequantize() if getattr(made, "is_quantized", False) else made
        yield np.nan_to_num(plain.detach().float().cpu().numpy().reshape(1, -1))


def _place(name: str, blocks: dict[str, int]) -> int | None:
    """The number of the block that a module stands in, counted in the order of calling; None outside of any."""
    parent, _, kind = name.rpartition(".")
    if not any(part.isdigit() for part in name.split(".")):
        return None
    return blocks.setdefault(name if kind.isdigit() else parent, len(blocks))


def _row(name: str, module: Module, reference: Module, layer: int | None) -> LayerError:
    """What became of the weight."""
    weights = _compared(getattr(reference, "weight", None), _weight(module))
    is_compared = weights.count > 0
    kind = name.rpartition(".")[2]
    return LayerError(
        name=name,
        kind=type(reference).__name__.lower() if kind.isdigit() else kind,
        layer=layer,
        sqnr_db=weights.sqnr_db if is_compared else None,
        cosine=weights.cosine if is_compared else None,
        largest=weights.largest_in_rms if is_compared else None,
    )


def _weight(module: Module) -> Any:
    """The weight of a module; torch's quantized modules have a function for it."""
    weight = getattr(module, "weight", None)
    if callable(weight) and not hasattr(weight, "detach"):
        try:
            return weight()
        except (RuntimeError, TypeError):
            return None
    return weight
