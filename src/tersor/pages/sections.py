"""The sections on one artefact, from what matters most to every last tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tersor.core.card import Card
from tersor.core.card_markdown import worst_layers
from tersor.core.evaluation import Benchmark, Evaluation, Limit, Outcome, Sample
from tersor.core.quantities import amount, decibels, interval, number, percent, size
from tersor.pages.charts import Segment, histogram_chart, noise_chart, size_bars
from tersor.pages.heat_map import heat_map
from tersor.pages.markup import Markup, join, tag
from tersor.pages.tables import badge, limit_list, metric_table, table

__all__ = ["Place", "key_figures", "limits_of", "outcome_of", "sections", "verdict"]

SHOWN_SAMPLES = 12
CONTEXT = 90
"""Characters of text shown on either side of a sample."""
HEADLINES = ("kl_mean", "top1_agreement", "perplexity_ratio", "agreement", "accuracy_drop", "accuracy", "top1_accuracy")
SPEEDS = ("generation_tokens_per_s", "latency_p50_ms")
SHOWN_HEADLINES = 3
_SPACES = re.compile(" {2,}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where sections stand: the beginning of their ids, and the level of their headings."""

    prefix: str
    level: int

    def heading(self, text: str, name: str) -> Markup:
        """Return a heading that can be linked to."""
        return tag(f"h{self.level}", text, id=f"{self.prefix}{name}")

    def section(self, text: str, name: str, *content: Markup | None) -> Markup | None:
        """Return a section with its heading, None where all content is None."""
        if not any(content):
            return None
        return tag("section", self.heading(text, name), *content, aria_labelledby=f"{self.prefix}{name}")


def sections(card: Card, place: Place) -> Markup:
    """Return all sections on `card`."""
    return join(
        [
            _size(card, place),
            _quality(card, place),
            _layers(card, place),
            _speed(card, place),
            _formats(card, place),
            _made(card, place),
            _tensors(card, place),
        ]
    )


def limits_of(card: Card) -> list[Limit]:
    """Return the demands of all evaluations and benchmarks."""
    measured: tuple[Evaluation | Benchmark, ...] = (*card.evaluations, *card.benchmarks)
    return [limit for part in measured for limit in part.limits]


def outcome_of(limits: Iterable[Limit]) -> Outcome | None:
    """Return the worst outcome, None without any limit."""
    found = {limit.outcome for limit in limits}
    order: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
    return next((outcome for outcome in order if outcome in found), None)


def verdict(card: Card) -> Markup:
    """Return the overall verdict with its reasons, or what to do to get one."""
    limits, findings = limits_of(card), [(row.name, text) for row in card.layers for text in row.findings]
    outcome = outcome_of(limits)
    parts: list[Markup | None] = []
    if outcome is not None:
        met = sum(limit.outcome == "pass" for limit in limits)
        parts.append(tag("p", badge(outcome), " ", f"{met} of {len(limits)} limits are met", class_="verdict"))
        parts.append(limit_list([limit for limit in limits if limit.outcome != "pass"]))
    elif card.evaluations:
        parts.append(tag("p", "Quality was measured; no limit was set that it could pass or fail.", class_="verdict"))
    else:
        command = tag("code", "tersor evaluate ARTEFACT --against MODEL --data TEXT")
        parts.append(tag("p", "Quality has not been measured yet: ", command, class_="verdict"))
    if findings:
        items = (tag("li", tag("code", name), ": ", text) for name, text in findings[:SHOWN_SAMPLES])
        parts.append(tag("p", tag("span", "✗ faults found", class_="badge fail"), " that rounding does not explain:"))
        parts.append(tag("ul", *items, class_="limits"))
    return tag("div", *parts)


def key_figures(card: Card) -> Markup:
    """Return the few numbers that tell the most."""
    smaller = f"{card.ratio:.2f}× smaller than {size(card.source_bytes)}" if card.source_bytes else ""
    error = card.mean_error
    figures = [
        ("size", size(card.nbytes), smaller),
        ("bits per weight", f"{card.plan.bits_per_weight:.2f}", f"{card.plan.weights:,} weights"),
    ]
    found = [m for e in card.evaluations for name in HEADLINES if (m := e.metric(name)) is not None]
    for metric in list({metric.name: metric for metric in found}.values())[:SHOWN_HEADLINES]:
        words = {"kl_mean": "KL divergence", "top1_agreement": "same top token", "perplexity_ratio": "perplexity ratio"}
        spread = interval(metric)
        label = words.get(metric.name, metric.name.replace("_", " "))
        figures.append((label, amount(metric, metric.value), "" if spread == "–" else spread))
    if not found and error is not None:
        figures.append(("mean error of a weight", percent(error), "rms, relative"))
    speeds = [m for b in card.benchmarks for name in SPEEDS if (m := b.metric(name)) is not None]
    for metric in speeds[:1]:
        spread = interval(metric)
        word = "latency" if metric.name.startswith("latency") else "generation"
        figures.append((word, amount(metric, metric.value), "" if spread == "–" else spread))
    items = (
        tag("div", tag("dt", name), tag("dd", *_figure(value)), tag("dd", more, class_="more") if more else None)
        for name, value, more in figures
    )
    return tag("dl", *items, class_="figures")


def _figure(text: str) -> tuple[object, ...]:
    """Return the number of a key figure, and its unit smaller."""
    value, _, unit = text.partition(" ")
    return (value, tag("small", f" {unit}")) if unit else (value,)


def _size(card: Card, place: Place) -> Markup | None:
    groups: dict[str, int] = {}
    for tensor in card.plan.tensors:
        groups[tensor.format] = groups.get(tensor.format, 0) + tensor.nbytes
    segments = [Segment(name, count) for name, count in sorted(groups.items(), key=lambda item: -item[1])]
    rest = card.nbytes - sum(segment.nbytes for segment in segments)
    if rest > 0:
        more = "graph" if card.plan.architecture == "onnx" else "vocabulary"
        segments.append(Segment(f"{more} and header", rest))
    chart = size_bars(f"{place.prefix}size-chart", card.source_bytes, card.nbytes, segments)
    return place.section("Size", "size", chart)


def _quality(card: Card, place: Place) -> Markup | None:
    parts = [part for index, found in enumerate(card.evaluations) for part in _evaluation(found, place, index)]
    return place.section("Quality", "quality", *parts)


def _evaluation(found: Evaluation, place: Place, index: int) -> list[Markup | None]:
    """Return the parts on one evaluation: what, verdict, metrics, distribution, worst items, how."""
    against = [" against ", tag("strong", found.reference)] if found.reference else []
    data = [" on ", tag("strong", found.data)] if found.data else []
    parts: list[Markup | None] = [tag("p", f"{found.task.capitalize()}:", *against, *data, ".", class_="lead")]
    parts.append(limit_list(found.limits))
    caption = f"{found.task.capitalize()}: metrics with their 95 % confidence intervals"
    parts.append(metric_table(caption, found.metrics))
    for number_, histogram in enumerate(found.histograms):
        parts.append(histogram_chart(f"{place.prefix}histogram-{index}-{number_}", histogram, found.metrics))
    if found.samples:
        parts.append(_samples(found.samples))
    parts.append(_how(found))
    return parts


def _samples(samples: Sequence[Sample]) -> Markup:
    rows = []
    for sample in samples[:SHOWN_SAMPLES]:
        before, after = _one_line(sample.before)[-CONTEXT:].lstrip(), _one_line(sample.after)[:CONTEXT]
        text = tag(
            "span",
            "…" * (len(sample.before) > CONTEXT) + before,
            tag("mark", _one_line(sample.text).replace(" ", "␣") or "∅"),
            after + "…" * (len(sample.after) > CONTEXT),
            class_="text",
        )
        rows.append([(number(sample.value, 3), sample.value), text, sample.detail])
    return table("Worst items, in their text", [">how wrong", "text", "what each model made of it"], rows)


def _one_line(text: str) -> str:
    """Return `text` on one line: ends of lines and tabs as signs, runs of spaces as one."""
    return _SPACES.sub(" ", text.replace("\r", "").replace("\t", "⇥").replace("\n", "⏎"))


def _how(found: Evaluation | Benchmark) -> Markup | None:
    """Return how it was measured: engines or machine, settings, command, notes."""
    pairs: list[tuple[str, str]] = []
    if isinstance(found, Evaluation):
        pairs += [(side, engine) for side, engine in found.engines.items()]
        pairs += [("data, SHA-256", found.data_sha256)] if found.data_sha256 else []
    else:
        pairs += [(name, _plain(value)) for name, value in found.machine.items()]
    pairs += [(name.replace("_", " "), _plain(value)) for name, value in found.settings.items()]
    pairs += [("artefact, SHA-256", found.subject_sha256)] if found.subject_sha256 else []
    pairs += [("with", ", ".join(f"{name} {text}" for name, text in found.versions.items()))] if found.versions else []
    pairs += [("on", found.date)] if found.date else []
    pairs += [("took", f"{number(found.seconds, 3)} s")] if found.seconds else []
    parts = [tag("p", note, class_="note") for note in found.notes]
    parts += [tag("pre", tag("code", found.command), tabindex="0")] if found.command else []
    if pairs:
        parts.append(tag("dl", *(join([tag("dt", name), tag("dd", text)]) for name, text in pairs), class_="how"))
    if not parts:
        return None
    return tag("details", tag("summary", "How this was measured"), *parts)


def _plain(value: object) -> str:
    return number(value, 5) if isinstance(value, float) else str(value)


def _layers(card: Card, place: Place) -> Markup | None:
    errors = {row.name: row.relative for row in card.errors if row.relative is not None}
    faulty = [row.name for row in card.layers if row.findings]
    outside = _worst_layers(card)
    return place.section(
        "Layers",
        "layers",
        heat_map(f"{place.prefix}heat-map", errors, faulty),
        noise_chart(f"{place.prefix}noise", card.layers),
        outside,
    )


def _worst_layers(card: Card) -> Markup | None:
    """Return the table of the worst layers, or of the largest errors of weights where no layers were compared."""
    if card.layers:
        rows = []
        for row in worst_layers(card.layers):
            cosine = "–" if row.cosine is None else f"{row.cosine:.6f}"
            largest = "–" if row.largest is None else number(row.largest, 3)
            clipped = "–" if row.clipped is None else percent(row.clipped)
            sides = ["–" if value is None else decibels(value) for value in (row.entering_db, row.arriving_db)]
            found = "; ".join(row.findings) or "–"
            rows.append([tag("code", row.name), decibels(row.sqnr_db), cosine, largest, clipped, *sides, found])
        columns = ["place", ">SQNR", ">cosine", ">largest error, rms", ">clipped", ">enters", ">arrives", "findings"]
        return table("Layers compared with the original, the worst first", columns, rows)
    pairs = zip(card.plan.tensors, card.errors, strict=False)
    known = sorted(((e.relative, t) for t, e in pairs if e.relative), key=lambda pair: -pair[0])[:10]
    if not known:
        return None
    body = [
        [tag("code", t.name), t.format, percent(error), f"{-20 * math.log10(error):.1f} dB"]
        for error, t in known
        if error > 0
    ]
    return table("Largest errors of weights", ["tensor", "format", ">relative error", ">SQNR"], body)


def _speed(card: Card, place: Place) -> Markup | None:
    parts: list[Markup | None] = []
    for found in card.benchmarks:
        against = [", beside ", tag("strong", found.against), " in the same minutes"] if found.against else []
        parts.append(tag("p", "In ", tag("strong", found.engine), *against, ".", class_="lead"))
        parts.append(limit_list(found.limits))
        parts.append(metric_table(f"Speed and memory in {found.engine}", found.metrics, units="runs"))
        if found.ratios:
            parts.append(metric_table(f"Ratios to {found.against}, of paired runs", found.ratios, units="pairs"))
        parts.append(_how(found))
    return place.section("Speed", "speed", *parts)


def _formats(card: Card, place: Place) -> Markup | None:
    rows = []
    groups: dict[str, list[tuple[int, int, float | None]]] = {}
    for index, tensor in enumerate(card.plan.tensors):
        error = card.errors[index].relative if index < len(card.errors) else None
        groups.setdefault(tensor.format, []).append((tensor.weights, tensor.nbytes, error))
    for name, found in sorted(groups.items(), key=lambda item: -sum(nbytes for _, nbytes, _ in item[1])):
        weights, nbytes = sum(n for n, _, _ in found), sum(n for _, n, _ in found)
        known = [(n, e) for n, _, e in found if e is not None]
        mean = math.sqrt(sum(n * e * e for n, e in known) / max(sum(n for n, _ in known), 1))
        share = nbytes / max(card.plan.nbytes, 1)
        bits = f"{nbytes * 8 / max(weights, 1):.3f}"
        cells: list[object] = [name, (f"{len(found)}", len(found)), (f"{weights:,}", weights), bits]
        rows.append([*cells, (size(nbytes), nbytes), percent(share), percent(mean) if known else "–"])
    columns = ["format", ">tensors", ">weights", ">bits per weight", ">size", ">share", ">error"]
    made = table("Formats in this artefact", columns, rows, is_sortable=True)
    fallbacks = [[tag("code", t.name), t.wanted, t.format, t.reason] for t in card.plan.fallbacks]
    missed = (
        table("Tensors that could not take their format", ["tensor", "wanted", "got", "why"], fallbacks)
        if fallbacks
        else tag("p", "Every tensor has the format that was chosen for it.", class_="note")
    )
    notes = (tag("p", note, class_="note") for note in card.notes)
    return place.section("Formats", "formats", made, missed, *notes)


def _made(card: Card, place: Place) -> Markup | None:
    recipe, seconds = card.plan.recipe, card.seconds
    parts: list[Markup | None] = [tag("pre", tag("code", card.command), tabindex="0")] if card.command else []
    pairs: list[tuple[str, object]] = [("recipe", f"{recipe.format}, search {recipe.search}")]
    pairs += [("mixture table", recipe.mixture)] if recipe.mixture else []
    pairs += [("importance", recipe.importance)] if recipe.importance else []
    pairs += [("own choices", ", ".join(recipe.tensor_formats))] if recipe.tensor_formats else []
    if seconds.total:
        stages = f"reading {seconds.reading:.1f}, encoding {seconds.encoding:.1f}, writing {seconds.writing:.1f}"
        pairs.append(("time", f"{seconds.total:.1f} s ({stages}; side by side)"))
    pairs += [("peak memory", size(card.peak_memory_bytes))] if card.peak_memory_bytes is not None else []
    pairs += [("machine", card.platform)] if card.platform else []
    pairs += [("with", ", ".join(f"{name} {text}" for name, text in card.versions.items()))] if card.versions else []
    parts.append(tag("dl", *(join([tag("dt", name), tag("dd", text)]) for name, text in pairs), class_="how"))
    files = [["artefact", tag("code", a.name), (f"{a.nbytes:,}", a.nbytes), _hash(a.sha256)] for a in card.artefacts]
    files += [["source", tag("code", name), "–", _hash(digest)] for name, digest in card.sources.items()]
    parts.append(table("Files and their hashes", ["role", "file", ">bytes", "SHA-256"], files) if files else None)
    return place.section("How it was made", "made", *parts)


def _hash(digest: str) -> Markup:
    return tag("code", digest or "not written", class_="hash")


def _tensors(card: Card, place: Place) -> Markup | None:
    if not card.plan.tensors:
        return None
    rows = []
    for index, tensor in enumerate(card.plan.tensors):
        error = card.errors[index].relative if index < len(card.errors) else None
        shape = (" × ".join(map(str, tensor.shape)), tensor.weights)
        cost = ("–", -1.0) if error is None else (percent(error), error)
        bits = f"{tensor.bits_per_weight:.2f}"
        rows.append([tag("code", tensor.name), shape, tensor.source_dtype, tensor.format, bits, cost, tensor.reason])
    columns = ["tensor", ">shape", "from", "to", ">bits", ">error", "why"]
    made = table(f"All {len(rows):,} tensors", columns, rows, is_sortable=True)
    summary = tag("summary", f"Show all {len(rows):,} tensors")
    heading = place.heading("Every tensor", "tensors")
    details = tag("details", summary, made)
    return tag("section", heading, details, class_="folded", aria_labelledby=f"{place.prefix}tensors")
