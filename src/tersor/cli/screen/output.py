"""What goes to stdout: one JSON document, or tables and lines for people."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from tersor.core.errors import SchemeError

__all__ = ["JsonOption", "console", "is_given", "print_json", "refuse_given", "significant", "table"]

PIPE_WIDTH = 100
"""Columns of a table that does not go to a terminal."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of text.")]


def print_json(document: Mapping[str, object] | list[object]) -> None:
    """Write `document` as one line of JSON; numbers that JSON has no word for become null.

    What is not ASCII is escaped where stdout is not UTF-8.
    """
    escape = not (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(_finite(document), ensure_ascii=escape, allow_nan=False) + "\n")


def console() -> Console:
    """A console on stdout: as wide as the terminal, PIPE_WIDTH where there is none; colours only on a terminal."""
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not is_terminal)


def table(*columns: str) -> Table:
    """An empty table; columns whose name begins with ">" are for numbers and stand to the right.

    These and the first are never wrapped.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        is_number = column.startswith(">")
        is_whole = is_number or index == 0
        made.add_column(column.removeprefix(">"), justify="right" if is_number else "left", no_wrap=is_whole)
    return made


def significant(value: float, digits: int = 4) -> str:
    """A number with at most `digits` significant digits, whole numbers below a million in full.

    >>> significant(4.5), significant(3.4028234e38), significant(65504.0), significant(2.0**-149)
    ('4.5', '3.403e+38', '65504', '1.401e-45')
    """
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{digits}g}"


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def refuse_given(context: typer.Context, names: tuple[str, ...], subject: str) -> None:
    """Say which option was given that means nothing here, instead of passing it over."""
    options = {str(option.name): option.opts[0] for option in context.command.params}
    for name in names:
        if is_given(context, name):
            raise SchemeError(f"{options[name]} means nothing for {subject}")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option, by the name of its parameter, was typed."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
