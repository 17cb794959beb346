"""A torch net as users hand it over: the weights that it is to have, and what its forward is called with."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import FormatError, SchemeError
from tersor.files.checkpoint import Checkpoint
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch", "torch")

__all__ = ["example_of", "load_weights"]


def load_weights(module: Module, path: Path) -> None:
    """Put the tensors of a safetensors or .pt file into a module; every name must be met.

    Of a tensor that the module has under several names, one is enough: safetensors keeps no other.
    """
    with contextlib.closing(Checkpoint([path])) as checkpoint:
        found = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.tensors}
    wanted = module.state_dict()
    odd = sorted(set(found) - set(wanted))
    met = {_identity(wanted[name]) for name in found if name in wanted}
    absent = sorted(
        name
        for name in set(wanted) - set(found)
        if not name.endswith("num_batches_tracked") and _identity(wanted[name]) not in met
    )
    if odd or absent:
        told = [*(f"no place for {name!r}" for name in odd[:1]), *(f"{name!r} is absent" for name in absent[:1])]
        raise FormatError(f"{path}: are these the weights of {type(module).__name__}? {', '.join(told)}")
    try:
        module.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise FormatError(f"{path}: {' '.join(str(error).split())[:300]}") from error


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tensors have in common that are one."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def example_of(module: Module, batch: Any) -> Any:
    """Return the inputs in a batch of a loader, as tensors: a tensor, a tuple of them, or a mapping of keywords.

    What stands last in a tuple may be labels: where forward cannot take it, or where it is a vector of whole numbers
    that forward can do without. Raises SchemeError where nobody can know.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 1 and _has_labels(module, batch):
        batch = batch[0] if len(batch) == 2 else batch[:-1]
    if isinstance(batch, Mapping):
        return {key: torch.as_tensor(value) for key, value in batch.items()}
    return tuple(map(torch.as_tensor, batch)) if isinstance(batch, (tuple, list)) else torch.as_tensor(batch)


def _has_labels(module: Module, batch: tuple[Any, ...] | list[Any]) -> bool:
    if isinstance(batch[0], (Mapping, tuple)) and len(batch) == 2:
        return True  # all inputs in one
    takes_all, takes_rest = (_fits(module, len(given)) for given in (batch, batch[:-1]))
    if takes_all and takes_rest and not _are_classes(batch[-1]):
        raise SchemeError(
            f"forward of {type(module).__name__} takes {len(batch) - 1} inputs or {len(batch)}, and batches have "
            f"{len(batch)} parts: is the last an input, or a label? Give example_inputs=, or batches that are mappings "
            "by the names of inputs"
        )
    return takes_rest


def _fits(module: Module, count: int) -> bool:
    try:
        inspect.signature(module.forward).bind(*range(count))
    except TypeError:
        return False
    return True


def _are_classes(item: Any) -> bool:
    """Whether no input looks like that: a vector of whole numbers, or what is no numbers at all."""
    numbers = item if hasattr(item, "detach") else np.asarray(item)
    kind = str(numbers.dtype)
    return kind.startswith(("object", "<U")) or (numbers.ndim == 1 and "int" in kind)
