"""Nets by name: `package.module:factory`, imported and called."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersor.core.errors import MissingError, SchemeError
from tersor.evaluation.nets.calling import Net, is_module

__all__ = ["is_net_name", "load_named", "load_net"]

_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def is_net_name(text: str) -> bool:
    """Whether `text` names a net as `package.module:factory`, not a file.

    >>> is_net_name("nets.resnet:quantized"), is_net_name("model.gguf"), is_net_name("org/model")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None and not Path(text).exists()


def load_net(name: str) -> Net:
    """Import `package.module:factory`, call the factory without arguments, and return its net.

    The current folder can be imported from, as `python -m` has it; whatever the import runs, runs. A module that
    stands there itself is taken as it is. Raises SchemeError for a name of another form, MissingError where it leads
    nowhere.
    """
    made = load_named(name)
    if is_module(made):
        return made  # type: ignore[no-any-return]  # is_module
    if not callable(made):
        raise SchemeError(f"{name} is a {type(made).__name__}; a function that returns a net is needed")
    net = made()
    if not callable(net):
        raise SchemeError(f"{name}() returned a {type(net).__name__}; a net that can be called is needed")
    return net  # type: ignore[no-any-return]  # whatever it is, it can be called


def load_named(name: str) -> Any:
    """Import what `package.module:name` stands for; errors are those of `load_net`."""
    if _NAME.fullmatch(name) is None:
        raise SchemeError(f"{name!r} is not package.module:factory, for example nets.resnet:quantized")
    place, _, path = name.partition(":")
    try:
        with _current_folder():
            made: Any = importlib.import_module(place)
    except ImportError as error:
        raise MissingError(f"{place} cannot be imported from {Path.cwd()}: {error}") from error
    for part in path.split("."):
        if not hasattr(made, part):
            raise MissingError(f"{place} has no {path}")
        made = getattr(made, part)
    return made


@contextmanager
def _current_folder() -> Iterator[None]:
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
