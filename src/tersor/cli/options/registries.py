"""Options that name a registry, and who does what for which reason."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["FolderOption", "OptionalFolderOption", "WhoOption", "WhyOption", "who_or_user"]

FolderOption = Annotated[
    Path, typer.Option("--registry", envvar="TERSOR_REGISTRY", metavar="DIR", help="The folder of the registry.")
]
OptionalFolderOption = Annotated[
    Path | None, typer.Option("--registry", envvar="TERSOR_REGISTRY", metavar="DIR", help="The folder of the registry.")
]
WhoOption = Annotated[
    str | None, typer.Option("--who", metavar="NAME", help="Who does this; the user of the system if not given.")
]
WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why, for the history.")]


def who_or_user(given: str | None) -> str:
    """Return the name that was given, else that of the user of the system."""
    if given is not None:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a number without a name
        return "unknown"
