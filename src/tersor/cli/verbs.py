"""The verbs of the command line: a row each, and its module loaded when it is asked for, not before.

All of them together are hundreds of modules, which would take longer to load than most verbs take to answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["VERBS", "Verb", "Verbs"]


@dataclass(frozen=True, slots=True)
class Verb:
    """A row: `module` has what is called under the verb's own name, a function or a Typer of several."""

    module: str
    short_help: str

    def command(self, name: str) -> Any:
        """Load the module and return the command."""
        found = getattr(importlib.import_module(f"tersor.cli.{self.module}"), name)
        group = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            group.add_typer(found, name=name, short_help=self.short_help)
        else:
            group.command(name, short_help=self.short_help)(found)
        group.callback()(lambda: None)  # so that it stays a group, of one
        made: Any = typer.main.get_command(group)
        return made.commands[name]


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


class _Loaded(MutableMapping[str, Any]):
    """Name → command, made at the first look."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = VERBS[name].command(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in VERBS or name in self._made

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        yield from VERBS
        yield from (name for name in self._made if name not in VERBS)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Verbs(TyperGroup):
    """The group of all verbs."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Loaded()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what there is without loading it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.short_help) for name, verb in VERBS.items()])
