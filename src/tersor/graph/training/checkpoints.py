"""Where a training stands, on disk: nothing but tensors and numbers, and whole or not there."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.core.errors import FormatError
from tersor.files.atomic import atomic_writer
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
else:
    torch = LazyModule("torch", "torch")

__all__ = ["BEST", "LAST", "load_state", "read", "write"]

BEST, LAST = "best.pt", "last.pt"
VERSION = 1


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, and lists and dicts of them."""
    with atomic_writer(path) as file:
        torch.save({"version": VERSION, **content}, file)


def read(path: Path) -> dict[str, Any]:
    """Return what `write` wrote; FormatError for anything else, of which nothing is executed."""
    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path}: not a checkpoint of a training; delete it to start anew")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FormatError(
            f"{path}: not a checkpoint of a training ({_line(error)}); delete it to start anew"
        ) from error
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise FormatError(f"{path}: not a checkpoint of this version; delete it to start anew")
    return found


def load_state(module: Module, path: Path, state: dict[str, Any]) -> None:
    """Put a state into the module that it was taken from; FormatError for another one."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise FormatError(
            f"{path}: of another net or another rounding ({_line(error)}); delete it to start anew"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
