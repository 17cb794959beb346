"""The verbs of the command line: a row each, and its module loaded when it is asked for, not before.

All of them together are hundreds of modules, which would take longer to load than most verbs take to answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["VERBS", "Verb", "Verbs"]


@dataclass(frozen=True, slots=True)
class Verb:
    """A row: `module` has what is called under the verb's own name, a function or a Typer of several."""

    module: str
    short_help: str


VERBS = {
    "quantize": Verb("quantize", "Turn a model into a GGUF that llama.cpp runs."),
    "advise": Verb("planning.advise", "Find out which way to make a model small is enough."),
    "calibrate": Verb("calibrate", "Save what a model sees, for many quantizations."),
    "analyse": Verb("planning.analyse", "Measure how sensitive each tensor is to rounding."),
    "plan": Verb("planning.plan", "Choose the best format for every tensor."),
    "verify": Verb("verify", "Prove that a GGUF is sound and is its source."),
    "evaluate": Verb("evaluate", "Measure how far a GGUF is from its source."),
    "bench": Verb("bench", "Measure speed, memory and energy, beside another."),
    "optimize": Verb("targets.optimize", "Choose what runs an artefact fastest here."),
    "estimate": Verb("targets.estimate", "Tell what fits where, and how fast it can be."),
    "loadtest": Verb("deploy.loadtest", "Send load to a server and judge its answers."),
    "report": Verb("report", "Write a page on artefacts, beside each other."),
    "gate": Verb("deploy.gate", "Judge whether an artefact may serve."),
    "serve": Verb("deploy.serve", "Serve models, with full precision behind each."),
    "alerts": Verb("deploy.alerts", "List alerts, write them for Prometheus and Grafana."),
    "refresh": Verb("deploy.refresh", "Make what serves anew from recent traffic."),
    "registry": Verb("deploy.registry", "Keep what serves, what it passed, and since when."),
    "inspect": Verb("inspect", "Show what is inside a model."),
    "formats": Verb("formats", "List number formats and file types."),
    "doctor": Verb("doctor", "Show what is installed and works."),
    "demo": Verb("demo", "Go the whole way on an embedded model."),
}


@cache
def _command(name: str) -> Any:
    """Load the module of a verb and return the command; KeyError where there is no such verb."""
    verb = VERBS[name]
    found = getattr(importlib.import_module(f"tersor.cli.{verb.module}"), name)
    group = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=name, short_help=verb.short_help)
    else:
        group.command(name, short_help=verb.short_help)(found)
    group.callback()(lambda: None)  # so that it stays a group, of one
    made: Any = typer.main.get_command(group)
    return made.commands[name]


class _Loaded(Mapping[str, Any]):
    """Name → command, made at the first look."""

    def __getitem__(self, name: str) -> Any:
        return _command(name)

    def __contains__(self, name: object) -> bool:
        return name in VERBS

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class Verbs(TyperGroup):
    """The group of all verbs."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Loaded()  # type: ignore[assignment]  # typer only reads it

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what there is without loading it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.short_help) for name, verb in VERBS.items()])
