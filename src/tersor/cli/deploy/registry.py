"""`tersor registry`: which artefacts there are, what was found about them, and what serves since when."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.options.registries import FolderOption, WhoOption, WhyOption, who_or_user
from tersor.cli.screen.output import JsonOption, console, print_json
from tersor.cli.screen.registered import (
    artefact_lines,
    artefact_table,
    deployment_line,
    deployment_table,
    event_table,
    history_table,
)
from tersor.core.records import plain
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Deployment, Event, RegisteredArtefact

__all__ = ["registry"]

registry = typer.Typer(name="registry", no_args_is_help=True, rich_markup_mode=None)

ArtefactArgument = Annotated[str, typer.Argument(metavar="ARTEFACT", help="NAME, its newest version, or NAME:VERSION.")]
DeploymentArgument = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="The name that something serves under.")]
HERE = Path("registry")


@registry.callback()
def registry_group() -> None:
    """Keep artefacts with their hashes and verdicts, and what serves under which name since when.

    Everything is only ever added to: what served last month, and who let it, can be read next year.
    """


@registry.command(short_help="Hash an artefact and register it.")
def add(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A GGUF, an ONNX file, a torch file or a folder.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What it is called; it becomes the next version.")
    ],
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="gguf, checkpoint, onnx or torch; by its name if not given."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="ARTEFACT", help="The full-precision artefact that it is compared with."),
    ] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Let it lie outside the registry, and remember its absolute path.")
    ] = False,
    who: WhoOption = None,
    folder: FolderOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of an artefact and register it, with the Card that lies beside it, as the next version of NAME.

    It must lie below the folder of the registry, unless --absolute is given. The registry is made if there is none.
    What is the newest version already stays it. An artefact with a --baseline may serve once it has passed its gate.
    """
    with Registry.open(folder, mode="create") as opened:
        made = opened.add_artefact(name, path, who=who_or_user(who), kind=kind, baseline=baseline, is_absolute=absolute)
        _tell(opened, made, as_json=as_json)


@registry.command("list", short_help="List artefacts and deployments.")
def list_all(folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """List every artefact with what its gate found last, and what stands under every name."""
    with Registry.open(folder) as opened:
        artefacts, deployments = opened.artefacts(), opened.deployments()
        objections = {row.label: opened.objection(row.label) for row in artefacts}
        if as_json:
            rows = [{**_row(row), "objection": objections[row.label]} for row in artefacts]
            print_json({"artefacts": rows, "deployments": plain(deployments)})
            return
        verdicts = {row.label: opened.verdicts(row.label)[-1:] for row in artefacts}
        screen = console()
        screen.print(artefact_table(artefacts, verdicts, objections))
        if deployments:
            screen.print()
            screen.print(deployment_table(deployments))


@registry.command(short_help="Show all that is known of an artefact.")
def show(artefact: ArtefactArgument, folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """Show an artefact with its files and hashes, its verdicts and overrides, and whether it may serve."""
    with Registry.open(folder) as opened:
        _tell(opened, opened.artefact(artefact), as_json=as_json)


@registry.command(short_help="Hash artefacts again and name what differs.")
def verify(
    artefacts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARTEFACT]...", help="NAME or NAME:VERSION; all, and the database, if none is given."),
    ] = None,
    folder: FolderOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of artefacts again, and name each file that is not as it was registered.

    Exit code 1 if any is not.
    """
    with Registry.open(folder) as opened:
        if not artefacts:
            opened.check()
        rows = [opened.artefact(label) for label in artefacts] if artefacts else list(opened.artefacts())
        found = {row.label: opened.verify(row.label) for row in rows}
    is_well = not any(found.values())
    if as_json:
        print_json({"passed": is_well, "artefacts": {label: plain(each) for label, each in found.items()}})
    else:
        screen = console()
        for label, each in found.items():
            screen.print(f"{label}: {'FAILED' if each else 'ok'}")
            for difference in each:
                screen.print(f"  - {difference.path}: {difference.problem}")
    if not is_well:
        raise typer.Exit(1)


@registry.command(short_help="Let an artefact serve under a name.")
def deploy(
    deployment: DeploymentArgument,
    artefact: ArtefactArgument,
    fallback: Annotated[
        str | None,
        typer.Option(
            "--fallback", metavar="ARTEFACT", help="What answers where it may not, full precision; else its baseline."
        ),
    ] = None,
    why: WhyOption = "",
    who: WhoOption = None,
    folder: FolderOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Let an artefact serve under a name, once its files are read and are what was registered.

    Refused, with exit code 1, where it has a baseline and has not passed its gate, and nobody answers for it.
    """
    with Registry.open(folder, mode="write") as opened:
        _tell_deployment(opened.deploy(deployment, artefact, fallback, who=who_or_user(who), why=why), as_json=as_json)


@registry.command(short_help="Go back to what served before.")
def rollback(
    deployment: DeploymentArgument,
    leaving: Annotated[
        str | None,
        typer.Option("--leaving", metavar="ARTEFACT", help="Only if this serves now: then repeating does no harm."),
    ] = None,
    why: WhyOption = "",
    who: WhoOption = None,
    folder: FolderOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Go back to what served under a name before; again, to what served before that."""
    with Registry.open(folder, mode="write") as opened:
        _tell_deployment(opened.rollback(deployment, leaving=leaving, who=who_or_user(who), why=why), as_json=as_json)


@registry.command(short_help="Show what served under a name, and when.")
def history(deployment: DeploymentArgument, folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """Show what served under a name from when to when, the oldest first, with who let it and why."""
    with Registry.open(folder) as opened:
        intervals = opened.history(deployment)
    if as_json:
        rows = [{**plain(row.deployment), "until": row.until, "seconds": row.seconds} for row in intervals]
        print_json({"deployment": deployment, "intervals": rows})
    else:
        console().print(history_table(intervals))


@registry.command(short_help="Show who did what, and when.")
def log(
    since: Annotated[int, typer.Option("--since", min=0, metavar="ID", help="Only what came after this event.")] = 0,
    folder: FolderOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show everything that was done with a registry, the oldest first: also by gateways, and what they refused."""
    events: list[Event] = []
    with Registry.open(folder) as opened:
        while page := opened.events(events[-1].id if events else since):
            events += page
    if as_json:
        print_json({"events": plain(tuple(events))})
    else:
        console().print(event_table(events))


@registry.command(short_help="Answer for an artefact that has not passed.")
def override(
    artefact: ArtefactArgument,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Why it may serve all the same.")],
    who: WhoOption = None,
    folder: FolderOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Answer for an artefact that has not passed its gate: it may serve until its next verdict."""
    with Registry.open(folder, mode="write") as opened:
        made = opened.override(artefact, who=who_or_user(who), why=why)
    if as_json:
        print_json(plain(made))
    else:
        console().print(f"{made.artefact} may serve: {made.who} answers for it ({made.why})")


def _row(row: RegisteredArtefact) -> dict[str, Any]:
    return {"label": row.label, **plain(row)}


def _tell(opened: Registry, row: RegisteredArtefact, *, as_json: bool) -> None:
    verdicts, overrides = opened.verdicts(row.label), opened.overrides(row.label)
    objection, card = opened.objection(row.label), opened.card(row.label)
    if as_json:
        found = {"verdicts": plain(verdicts), "overrides": plain(overrides), "objection": objection}
        print_json({**_row(row), **found, "card": card.to_object() if card else None})
        return
    screen = console()
    for line in artefact_lines(row, verdicts, overrides, objection, card):
        screen.print(line)


def _tell_deployment(row: Deployment, *, as_json: bool) -> None:
    if as_json:
        print_json(plain(row))
    else:
        console().print(deployment_line(row))
