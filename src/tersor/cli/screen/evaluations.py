"""An evaluation for people: its metrics with their intervals, what suffered most, and what became of each limit."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tersor.cli.screen.output import significant, table
from tersor.core.evaluation import Evaluation, Metric, Sample

__all__ = ["print_evaluation", "print_limits"]

SHOWN_SAMPLES = 5
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_WORST = {
    "language": "tokens that suffered most",
    "choice": "questions answered otherwise",
    "classification": "items that went from right to wrong",
}


def print_evaluation(screen: Console, found: Evaluation) -> None:
    """Everything but the limits."""
    screen.print(f"{found.subject} against {found.reference} on {found.data}: {_amount(found)}")
    screen.print()
    screen.print(_metrics(found.metrics))
    if found.samples:
        screen.print()
        screen.print(_WORST[found.task])
        for sample in found.samples[:SHOWN_SAMPLES]:
            screen.print(_line(sample), soft_wrap=True)
            screen.print(f"{'':10}{sample.detail}", soft_wrap=True)
    if found.notes:
        screen.print()
        for note in found.notes:
            screen.print(f"note: {note}")


def print_limits(screen: Console, found: Evaluation) -> None:
    """The outcome of each limit and its reason, after an empty line; nothing where there is none."""
    if found.limits:
        screen.print()
    for limit in found.limits:
        screen.print(f"{limit.outcome:13}", style=_STYLES[limit.outcome], end="")
        screen.print(limit.reason)


def _amount(found: Evaluation) -> str:
    settings = found.settings
    if found.task == "language":
        return f"{settings['windows']} windows of {settings['context']} tokens"
    return f"{settings['questions']} questions" if found.task == "choice" else f"{settings['items']} items"


def _metrics(metrics: tuple[Metric, ...]) -> Table:
    has_floor = any(metric.floor is not None for metric in metrics)
    made = table("metric", ">value", ">95 % interval", *([">noise floor"] if has_floor else []), "unit")
    for metric in metrics:
        interval = "–"
        if metric.low is not None and metric.high is not None:
            interval = f"{significant(metric.low)} … {significant(metric.high)}"
        floor = "–" if metric.floor is None else significant(metric.floor, 2)
        made.add_row(metric.name, significant(metric.value, 5), interval, *([floor] if has_floor else []), metric.unit)
    return made


def _line(sample: Sample) -> str:
    before, text, after = (one.replace("\n", "⏎") for one in (sample.before[-60:], sample.text, sample.after[:40]))
    if not (before or after):
        return f"{sample.value:8.3g}  {text}"
    return f"{sample.value:8.3g}  …{before}▸{text}◂{after}…"
