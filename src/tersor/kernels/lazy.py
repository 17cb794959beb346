"""Torch without the cost of importing it: the module is loaded at its first use, or its absence explained."""

from __future__ import annotations

import importlib
from types import ModuleType

from tersor.core.errors import MissingError

__all__ = ["LazyModule"]


class LazyModule(ModuleType):
    """Stands in for an optional dependency until one of its names is used.

    name   what to import
    extra  the extra of tersor that installs it, named in the MissingError when the import fails
    """

    def __init__(self, name: str, extra: str) -> None:
        super().__init__(name)
        self._extra = extra

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):  # inspection (doctest, copy, …) must not load it
            raise AttributeError(attribute)
        try:
            module = importlib.import_module(self.__name__)
        except ModuleNotFoundError as error:
            raise MissingError(
                f"this needs {self.__name__}, which is not installed: pip install 'tersor[{self._extra}]'"
            ) from error
        found: object = getattr(module, attribute)
        self.__dict__[attribute] = found
        return found
