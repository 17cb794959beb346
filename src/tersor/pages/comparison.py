"""Several artefacts beside each other: trade-off curves and one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tersor.core.card import Card
from tersor.core.evaluation import HELD_OUT, Benchmark, Evaluation, Metric
from tersor.core.quantities import amount, size
from tersor.pages.markup import Markup, join, tag
from tersor.pages.sections import limits_of, outcome_of
from tersor.pages.tables import badge, table
from tersor.pages.tradeoff import Point, pareto, tradeoff_chart

__all__ = ["AXES", "Axis", "comparison", "labels_of", "measured", "unlike"]

Measurement: TypeAlias = Evaluation | Benchmark


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


def measured(cards: Sequence[Card], name: str) -> list[Metric | None]:
    """Return the metric of that name of every Card, all of them from one text: that which most Cards were measured on.

    Of several measurements on it the latest counts. None: a Card has none there; where no two Cards have a text in
    common, all of them. What quantizing itself measured stands beside nothing: each calibration has a text of its own.
    """
    return [None if part is None else part.metric(name) for part in _comparable(cards, name)]


def unlike(cards: Sequence[Card], names: Sequence[str]) -> list[str]:
    """Return what keeps figures of `cards`, called `names`, from being compared, a sentence each; [] for nothing."""
    left: dict[str, str] = {}
    shown: set[str] = set()
    told: list[str] = []
    for axis in AXES:
        chosen, own = _comparable(cards, axis.metric), [_texts(card, axis.metric) for card in cards]
        for name, part, texts in zip(names, chosen, own, strict=True):
            if part is None and texts:
                left.setdefault(name, ", ".join(dict.fromkeys(e.data or "unnamed data" for e in texts.values())))
        found = {_described(part) for part in chosen if isinstance(part, Evaluation)}
        shown |= found if len(found) > 1 else set()
    if left:
        where = "; ".join(f"{name} on {texts}" for name, texts in left.items())
        told.append(
            f"No text in common with the others, so left out here: {where}. Evaluate all on one, with "
            "--against MODEL --data TEXT"
        )
    if shown:
        told.append(f"Not the same measurement everywhere: {'; '.join(sorted(shown))}")
    return told


def _comparable(cards: Sequence[Card], name: str) -> list[Measurement | None]:
    """Return of each Card what measured `name` on the text that most of them share; benchmarks need none."""
    found: list[dict[tuple[str, str], Measurement]] = []
    for card in cards:
        timed = [part for part in card.benchmarks if part.metric(name) is not None]
        found.append({**_texts(card, name), **({("", ""): timed[-1]} if timed else {})})
    counts = Counter(question for each in found for question in each)
    most = max(counts.values(), default=0)
    if not most or (most == 1 and sum(map(bool, found)) > 1):
        return [None] * len(cards)
    chosen = [question for question, count in counts.items() if count == most][-1]
    return [each.get(chosen) for each in found]


def _texts(card: Card, name: str) -> dict[tuple[str, str], Evaluation]:
    """Return the evaluations with that metric by task and data, the latest of each, in order of time."""
    found: dict[tuple[str, str], Evaluation] = {}
    for evaluation in card.evaluations:
        if evaluation.task != HELD_OUT and evaluation.metric(name) is not None:
            question = evaluation.task, evaluation.data_sha256 or evaluation.data
            found.pop(question, None)
            found[question] = evaluation
    return found


def _described(evaluation: Evaluation) -> str:
    """Return what a text was compared with, and how much of it: its first windows are another text than all of it."""
    parts = [f"against {evaluation.reference or 'nothing'}"]
    for key, words in (("windows", "windows"), ("context", "tokens a window"), ("seed", "as their seed")):
        if key in evaluation.settings:
            parts.append(f"{evaluation.settings[key]} {words}")
    return ", ".join(parts)


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
            for card, name, metric in zip(cards, names, measured(cards, axis.metric), strict=True)
            if metric is not None
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
    warnings = [tag("p", tag("strong", "Note: "), text, ".", class_="note warning") for text in unlike(cards, names)]
    return tag(
        "section",
        tag("h2", "Comparison", id="comparison"),
        *warnings,
        grid,
        key if drawn else None,
        _table(cards, names, fronts),
        aria_labelledby="comparison",
    )


def _bare(metric: Metric) -> str:
    """Return the value without its unit, which stands over the column."""
    return amount(metric, metric.value).removesuffix(metric.unit).rstrip()


def _table(cards: Sequence[Card], names: Sequence[str], fronts: dict[str, set[str]]) -> Markup:
    found = {axis: measured(cards, axis.metric) for axis in AXES}
    axes = [axis for axis in AXES if any(found[axis])]
    has_limits = any(limits_of(card) for card in cards)
    rows: list[list[object]] = []
    for index, (card, name) in enumerate(zip(cards, names, strict=True)):
        row: list[object] = [tag("a", name, href=f"#a{index + 1}"), (size(card.nbytes), card.nbytes)]
        row += [(f"{card.ratio:.2f}×", card.ratio) if card.source_bytes else "–", f"{card.plan.bits_per_weight:.2f}"]
        for axis in axes:
            metric = found[axis][index]
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
