"""Several artefacts beside each other: trade-off curves and one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.core.card import Card
from tersor.core.evaluation import Benchmark, Evaluation, Metric
from tersor.core.quantities import amount, size
from tersor.pages.markup import Markup, join, tag
from tersor.pages.sections import limits_of, outcome_of
from tersor.pages.tables import badge, table
from tersor.pages.tradeoff import Point, pareto, tradeoff_chart

__all__ = ["AXES", "Axis", "comparison", "labels_of", "measured"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A metric that artefacts are compared by."""

    metric: str
    title: str
    short: str
    unit: str = ""
    is_higher_better: bool = False
    is_share: bool = False


AXES = (
    Axis("kl_mean", "Size against KL divergence", "KL, mean", " (nats)"),
    Axis("perplexity_ratio", "Size against perplexity", "perplexity ratio"),
    Axis("perplexity", "Size against perplexity", "perplexity"),
    Axis("top1_agreement", "Size against agreement", "same top token", "", is_higher_better=True, is_share=True),
    Axis("accuracy", "Size against accuracy", "accuracy", "", is_higher_better=True, is_share=True),
    Axis("top1_accuracy", "Size against accuracy", "accuracy", "", is_higher_better=True, is_share=True),
    Axis("generation_tokens_per_s", "Size against speed", "tokens/s", "", is_higher_better=True),
)


def measured(card: Card, name: str) -> Metric | None:
    """Return the latest measurement of that name in all evaluations and benchmarks of a Card."""
    parts: tuple[Evaluation | Benchmark, ...] = (*card.evaluations, *card.benchmarks)
    found = [m for part in parts if (m := part.metric(name)) is not None]
    return found[-1] if found else None


def labels_of(cards: Sequence[Card]) -> list[str]:
    """Return the shortest names that tell artefacts apart: of the format, the file, or numbered."""
    for names in (
        [card.plan.recipe.format for card in cards],
        [card.artefacts[0].name.removesuffix(".gguf") if card.artefacts else card.name for card in cards],
    ):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{index}: {card.plan.recipe.format or card.name}" for index, card in enumerate(cards, 1)]


def comparison(cards: Sequence[Card], names: Sequence[str]) -> Markup:
    """Return the section that compares `cards`, called `names`."""
    drawn: list[Markup] = []
    fronts: dict[str, set[str]] = {}
    for axis in AXES:
        points = [
            Point(name, card.nbytes, metric.value, metric.low, metric.high)
            for card, name in zip(cards, names, strict=True)
            if (metric := measured(card, axis.metric)) is not None
        ]
        if axis.metric == "perplexity" and "perplexity_ratio" in fronts:
            continue  # the ratio has the narrower interval: chance in the text strikes both models alike
        best = axis.is_higher_better
        chart = tradeoff_chart(
            f"tradeoff-{axis.metric}",
            axis.title,
            axis.short + axis.unit,
            points,
            is_higher_better=best,
            is_share=axis.is_share,
        )
        if chart is not None:
            drawn.append(chart)
            fronts[axis.metric] = {point.name for point in pareto(points, is_higher_better=best)}
    key = tag(
        "ul",
        tag("li", tag("span", class_="key ring best"), "no other is both smaller and better"),
        tag("li", tag("span", class_="key ring beaten"), "another is smaller and better"),
        tag("li", tag("span", "I", class_="whisker-key"), "95 % confidence interval"),
        class_="keys",
    )
    grid = tag("div", *drawn, class_="grid-of-charts") if drawn else None
    warning = _different_data(cards)
    return tag(
        "section",
        tag("h2", "Comparison", id="comparison"),
        warning,
        grid,
        key if drawn else None,
        _table(cards, names, fronts),
        aria_labelledby="comparison",
    )


def _different_data(cards: Sequence[Card]) -> Markup | None:
    """Return a warning where numbers stand beside each other that were measured on different data or models."""
    found = {
        (e.task, e.reference, e.data, e.data_sha256) for card in cards for e in card.evaluations if e.task == "language"
    }
    if len(found) < 2:
        return None
    told = "; ".join(
        sorted(f"{data or 'unnamed data'} against {reference or 'nothing'}" for _, reference, data, _ in found)
    )
    return tag("p", tag("strong", "Not the same measurement everywhere: "), told, ".", class_="note warning")


def _bare(metric: Metric) -> str:
    """Return the value without its unit, which stands over the column."""
    return amount(metric, metric.value).removesuffix(metric.unit).rstrip()


def _table(cards: Sequence[Card], names: Sequence[str], fronts: dict[str, set[str]]) -> Markup:
    axes = [axis for axis in AXES if any(measured(card, axis.metric) for card in cards)]
    has_limits = any(limits_of(card) for card in cards)
    rows: list[list[object]] = []
    for card, name in zip(cards, names, strict=True):
        row: list[object] = [tag("a", name, href=f"#a{len(rows) + 1}"), (size(card.nbytes), card.nbytes)]
        row += [(f"{card.ratio:.2f}×", card.ratio) if card.source_bytes else "–", f"{card.plan.bits_per_weight:.2f}"]
        for axis in axes:
            metric = measured(card, axis.metric)
            star = " ★" if name in fronts.get(axis.metric, ()) else ""
            row.append("–" if metric is None else (_bare(metric) + star, metric.value))
        outcome = outcome_of(limits_of(card))
        row += [badge(outcome) if outcome else "–"] * has_limits
        rows.append(row)
    columns = ["artefact", ">size", ">smaller", ">bits per weight", *(f">{axis.short}{axis.unit}" for axis in axes)]
    columns += ["limits"] * has_limits
    made = table("Artefacts beside each other", columns, rows, is_sortable=True)
    note = "★ no other artefact is both smaller and better by this measure." if fronts else None
    return join([made, tag("p", note, class_="note") if note else None])
