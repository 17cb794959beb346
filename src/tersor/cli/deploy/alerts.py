"""`tersor alerts`: what a gateway tells of, for people, Prometheus and Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.screen.output import JsonOption, console, print_json, table
from tersor.deploy.alerting.rules import Rule
from tersor.pipeline.deploy import alerts as pipeline

__all__ = ["alerts"]


def alerts(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Write the files for Prometheus and Grafana here.")
    ] = None,
    deployment: Annotated[
        Path | None,
        typer.Option("--deployment", metavar="DEPLOY.YAML", help="With the limits of this deployment, not the usual."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the alerts of a gateway; or write rules for Prometheus, their tests and a dashboard for Grafana.

    The gateway goes by them itself, and tells the log, a webhook and mail. The files hold the same alerts for who has
    a Prometheus; `promtool test rules` shows of each that it fires, ends and is silent when it should be.

    \b
    Example:
      tersor alerts
      tersor alerts monitoring/ --deployment deploy.yaml
    """
    rules = pipeline.alerts(deployment)
    if folder is not None:
        written = pipeline.write_alerts(folder, rules)
        if as_json:
            print_json({"files": [str(path) for path in written]})
            return
        for path in written:
            typer.echo(str(path))
        return
    if as_json:
        print_json({"alerts": [_row(rule) for rule in rules.values()]})
        return
    made = table("alert", "severity", ">fires", ">ends", ">after", "says", "do")
    for rule in rules.values():
        side, other = ("<", "≥") if rule.is_below else (">", "≤")
        fires, ends = f"{side} {rule.limit:.4g}", f"{other} {rule.clear:.4g}"
        made.add_row(rule.name, rule.severity, fires, ends, f"{rule.for_s:g} s", rule.summary, rule.remedy)
    console().print(made)


def _row(rule: Rule) -> dict[str, object]:
    return {
        "alert": rule.name,
        "severity": rule.severity,
        "figure": rule.figure,
        "is_below": rule.is_below,
        "limit": rule.limit,
        "clear": rule.clear,
        "for_s": rule.for_s,
        "summary": rule.summary,
        "remedy": rule.remedy,
    }
