"""GPTQModel imports torchvision for models of pictures; PyPI's build of that does not load beside torch's for CPUs."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from typing import Any

__all__ = ["stand_in"]

NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.io")


def stand_in() -> None:
    """Put empty modules in the place of torchvision, once transformers has seen that there is none."""
    importlib.import_module("transformers.models.llama.modeling_llama")
    for name in NAMES:
        stub: Any = types.ModuleType(name)
        stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
        stub.__path__ = []
        stub.InterpolationMode = types.SimpleNamespace()
        stub.__getattr__ = _anything
        sys.modules.setdefault(name, stub)


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return object
