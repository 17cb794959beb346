"""The table of layers: where error enters, where it has grown to, and faults that rounding does not explain."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tersor.cli.screen.output import table
from tersor.core.evaluation import LayerError

__all__ = ["layers_table", "print_layers"]


def layers_table(rows: Sequence[LayerError]) -> Table:
    """One line a tensor or activation, in order; decibels: more is better, ∞ where nothing differs."""
    made = table("layer", ">SQNR dB", ">cosine", ">largest", ">clipped", ">entering", ">arriving")
    for row in rows:
        is_compared = row.cosine is not None or row.sqnr_db is not None
        made.add_row(
            f"{row.name} !" if row.findings else row.name,
            _decibels(row.sqnr_db) if is_compared else "",
            "" if row.cosine is None else f"{row.cosine:.5f}",
            "" if row.largest is None else f"{row.largest:.3g}",
            "" if row.clipped is None else f"{row.clipped:.2%}",
            "" if row.entering_db is None else _decibels(row.entering_db),
            "" if row.arriving_db is None else _decibels(row.arriving_db),
        )
    return made


def print_layers(screen: Console, rows: Sequence[LayerError]) -> None:
    """The table, then every finding with its tensor, then in words where most error enters and how much is left."""
    screen.print(layers_table(rows))
    for row in rows:
        for finding in row.findings:
            screen.print(f"FAULT    {row.name}: {finding}", style="bold red")
    entering = [row for row in rows if row.entering_db is not None]
    if entering:
        worst = min(entering, key=lambda row: row.entering_db or 0.0)
        screen.print(f"most error enters at {worst.name}: {_decibels(worst.entering_db)} dB on exact input")
    blocks = [row for row in rows if row.kind == "block" and row.arriving_db is not None]
    if len(blocks) > 1:
        first, last = blocks[0], blocks[-1]
        screen.print(
            f"it grows from {_decibels(first.arriving_db)} dB after {first.name} to "
            f"{_decibels(last.arriving_db)} dB after {last.name}"
        )


def _decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.1f}"
