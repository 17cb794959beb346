"""Tables and badges: captions, row headings, numbers to the right, words beside every colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tersor.core.evaluation import Limit, Metric, Outcome
from tersor.core.quantities import amount, interval, percent, title
from tersor.pages.charts import share_bar
from tersor.pages.markup import Markup, join, tag

__all__ = ["badge", "limit_list", "metric_table", "table"]

WORDS: dict[Outcome, str] = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive"}

Cell = object
"""What stands in a cell, or a pair of that and the number by which a column is sorted."""


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, name: str = "", is_sortable: bool = False
) -> Markup:
    """Return a table in a box that scrolls; the first cell of a row is its heading.

    columns  a name that begins with ">" stands over numbers, to the right
    """
    numeric = [column.startswith(">") for column in columns]
    head = tag("tr", *(_heading(column.removeprefix(">"), n) for column, n in zip(columns, numeric, strict=True)))
    body = (
        tag("tr", *(_cell(cell, is_first=not index, is_number=numeric[index]) for index, cell in enumerate(row)))
        for row in rows
    )
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *body),
        id=name or None,
        class_="sortable" if is_sortable else "wordy",
    )
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _heading(column: str, is_number: bool) -> Markup:
    return tag("th", column, scope="col", class_="number" if is_number else None)


def _cell(cell: Cell, *, is_first: bool, is_number: bool) -> Markup:
    shown, value = cell if isinstance(cell, tuple) else (cell, None)
    style = "number" if is_number else None
    if is_first:
        return tag("th", shown, scope="row", class_=style)
    return tag("td", shown, class_=style, data_value=None if value is None else repr(value))


def badge(outcome: Outcome) -> Markup:
    """Return the outcome as a word with a sign and a colour."""
    return tag("span", WORDS[outcome], class_=f"badge {outcome}")


def limit_list(limits: Sequence[Limit]) -> Markup | None:
    """Return every demand with what became of it, None without any."""
    if not limits:
        return None
    items = []
    for limit in limits:
        needed = f". About {limit.needed:,} units would settle it" if limit.needed else ""
        items.append(tag("li", badge(limit.outcome), " ", f"{limit.reason.rstrip('.')}{needed}."))
    return tag("ul", *items, class_="limits")


def metric_table(caption: str, metrics: Sequence[Metric], *, units: str = "units") -> Markup | None:
    """Return metrics with intervals, and noise floor and share of the roof where any was measured."""
    if not metrics:
        return None
    has_interval = any(metric.low is not None for metric in metrics)
    has_floor = any(metric.floor is not None for metric in metrics)
    has_share = any(metric.share is not None for metric in metrics)
    has_units = any(metric.units for metric in metrics)
    columns = ["metric", ">value", *[">95 % interval"] * has_interval, *[">noise floor"] * has_floor]
    columns += [">of this machine's roof"] * has_share + [f">{units}"] * has_units
    rows = []
    for metric in metrics:
        row: list[Cell] = [title(metric.name), tag("strong", amount(metric, metric.value))]
        row += [interval(metric)] * has_interval + [amount(metric, metric.floor)] * has_floor
        share = None if metric.share is None else join([share_bar(metric.share), " ", percent(metric.share)])
        row += [share or "–"] * has_share + [f"{metric.units:,}" if metric.units else "–"] * has_units
        rows.append(row)
    return table(caption, columns, rows)
