"""What was typed, as it may stand in Cards, verdicts and reports that others read."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

import typer

__all__ = ["published_command"]

_USER = re.compile(r"(?<=://)[^/?#@]*@")


def published_command(context: typer.Context, *, texts: Collection[str] = (), secrets: Collection[str] = ()) -> str:
    """Return the command line without folders, and without what its secrets hold.

    texts    options whose value is text even where a file has that name
    secrets  options of the form NAME:VALUE whose value nobody is to read

    Files and folders stand by their name, "." by that of the current folder, whether they are there already or yet to
    be written; of a URL what it asks for and who asks is left out.
    """
    shorts = {name for parameter in context.command.params for name in parameter.opts if len(name) == 2}
    named = {_whole(path) for value in context.params.values() for path in _paths(value)}
    words, before = ["tersor"], ""
    for word in context.obj or ():
        option, start, value = _parted(word, shorts, before)
        before = word if word.startswith("-") else ""
        if option in secrets:
            name, colon, _ = value.partition(":")
            value = f"{name}{colon}{'…' if colon else ''}"
        elif option not in texts:
            value = _shown(value, named)
        words.append(start + value)
    return shlex.join(words)


def _parted(word: str, shorts: Collection[str], before: str) -> tuple[str, str, str]:
    """Return the option that a word belongs to, what stands before its value, and the value."""
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        return option, option + equals, value
    if word[:2] in shorts:
        return word[:2], word[:2], word[2:]
    return before, "", word


def _paths(value: object) -> Iterator[Path]:
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, Path):
            yield one


def _shown(value: str, named: Collection[str]) -> str:
    if "://" in value:
        return _USER.sub("", value.partition("?")[0])
    whole = _whole(value)
    is_path = whole in named or os.path.exists(whole)  # noqa: PTH110 (a Path raises for a name that is too long)
    is_path |= Path(value).is_absolute() or value.startswith("~") or _is_beside_others(value)
    return Path(whole).name or value if value and is_path else value


def _is_beside_others(value: str) -> bool:
    """Whether it would lie in a folder that is there: what has the form of a hub id is none then, as for `load`."""
    folder = os.path.dirname(value)  # noqa: PTH120 (as above)
    return bool(folder) and os.path.isdir(folder)  # noqa: PTH112


def _whole(path: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (links keep the name they were called by)
