"""Modules of other folders of tests, so that tiny models are described in one place."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["neighbour"]


def neighbour(path: str, sees: str) -> ModuleType:
    """Return a module of its own of `tests/PATH.py`; pytest has another of a conftest, with other fixtures.

    sees  a name for who asks
    """
    name = f"{sees}_sees_" + path.replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
