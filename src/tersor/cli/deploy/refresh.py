"""`tersor refresh`: make what serves anew from recent traffic."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.options.registries import WhoOption, who_or_user
from tersor.cli.screen.output import JsonOption, console, print_json
from tersor.pipeline.deploy.orders import Gateway
from tersor.pipeline.deploy.refresh import Step, Waits
from tersor.pipeline.deploy.refresh import refresh as refreshed

__all__ = ["refresh"]

KEY = "TERSOR_KEY"


def refresh(
    deployment: Annotated[Path, typer.Argument(metavar="DEPLOY.YAML", help="What the gateway serves.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Whose primary is made anew.")],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="The original data, merged with the traffic; the model's reference if left out."
        ),
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The gateway that is told to try it; the command is printed without."),
    ] = None,
    key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable with the key of somebody who may.")
    ] = KEY,
    rolls: Annotated[
        bool, typer.Option("--rollout/--no-rollout", help="Name it as the candidate, and have it tried.")
    ] = True,
    supersedes: Annotated[
        bool, typer.Option("--supersede", help="Take the place of a candidate that is being tried, and do not wait.")
    ] = False,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Calibrate on recent traffic, quantize as before, gate, register, and begin a rollout.

    The gateway must keep some requests (`monitor: {keep: 2000}`), and the primary its Card, which says how it was made.
    One request in two is judged by and not calibrated with. What does not pass its gate changes nothing. Each step is
    in the record of the gateway. A call that was ended goes on where it was when it is made again. While a candidate is
    being tried the refresh waits, and the gateway makes it when that rollout has ended.

    \b
    Example:
      tersor refresh deploy.yaml --model digits --gateway http://127.0.0.1:8470
    """
    there = None if gateway is None else Gateway(gateway, os.environ.get(key_env, ""))

    def tell(step: Step) -> None:
        sys.stderr.write(f"{step.name}: {step.detail}\n")

    made = refreshed(
        deployment, model, calibration=calibration, gateway=there, rolls=rolls, supersedes=supersedes,
        who=who_or_user(who), tell=tell,
    )  # fmt: skip
    if isinstance(made, Waits):
        if as_json:
            print_json({"model": made.model, "waits_for": made.candidate, "state": made.state})
            return
        console().print(
            f"the rollout of {made.candidate} is {made.state}: the gateway makes {made.model} anew when that has ended "
            "(--supersede does it now)"
        )
        return
    if as_json:
        steps = [{"name": step.name, "detail": step.detail, **step.numbers} for step in made.steps]
        told = {"model": made.model, "artefact": made.artefact.name, "outcome": made.record.outcome}
        left = {"variant": made.variant, "state": made.state, "commands": list(made.commands), "steps": steps}
        print_json({**told, **left})
        return
    screen = console()
    screen.print(f"{made.artefact.name} passed its gate")
    if made.state:
        screen.print(f"the rollout of {made.variant} is {made.state}")
    for command in made.commands:
        screen.print(f"to have it tried:  {command}", soft_wrap=True)
