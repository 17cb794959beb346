"""`tersor doctor`: is everything there?"""

from __future__ import annotations

import typer

from tersor.cli.screen.output import JsonOption, console, print_json, table
from tersor.pipeline import doctor as pipeline

__all__ = ["doctor"]


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, kernels, what is absent and how to install it, and what this machine can do.

    What an extra of tersor brings has its name in brackets behind it.

    The class of machines it belongs to (`tersor estimate --list`), and its roofs, measured in a second.

    Exit code 1 if something that is installed does not work.
    """
    found = pipeline.doctor()
    if as_json:
        print_json(found.to_object())
    else:
        rows = table("what", "state", "found")
        for finding in found.findings:
            remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
            rows.add_row(finding.topic, finding.state, finding.text + remedy)
        screen = console()
        screen.print(rows)
        screen.print("\nall that is installed works" if found.is_healthy else "\nsomething is broken, see above")
    if not found.is_healthy:
        raise typer.Exit(1)
