"""The Card in Markdown: one page, what matters most first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tersor.core.evaluation import Benchmark, Evaluation, Histogram, LayerError, Limit, Metric
from tersor.core.plan import PlannedTensor
from tersor.core.quantities import amount, decibels, interval, number, percent, size, title

if TYPE_CHECKING:  # the Card imports this page of its own
    from tersor.core.card import Card, TensorError

__all__ = ["card_markdown", "worst_layers"]

WORST = 5
WORST_LAYERS = 10
SHOWN_SAMPLES = 8
CONTEXT = 40
"""Characters of text shown on either side of a sample."""
MARKS = {"pass": "✓ pass", "fail": "✗ **FAIL**", "inconclusive": "? inconclusive"}


def card_markdown(card: Card, *, tensors: bool = True) -> str:
    """Return `card` as Markdown: summary, proof, layers, speed, formats, provenance, and every tensor if asked for."""
    parts = [_headline(card), *map(_quality, card.evaluations), _layers(card.layers), *map(_speed, card.benchmarks)]
    parts += [_formats(card), _worst(card), _notes(card), _made(card)]
    parts += [_every_tensor(card)] * tensors
    return "\n\n".join(part for part in parts if part) + "\n"


def worst_layers(layers: Iterable[LayerError]) -> list[LayerError]:
    """Return the rows with findings first, then those with the lowest SQNR; at most WORST_LAYERS without findings."""
    found = [row for row in layers if row.findings]
    measured = [row for row in layers if row.sqnr_db is not None and not row.findings]
    return found + sorted(measured, key=lambda row: row.sqnr_db or 0.0)[:WORST_LAYERS]


def _quality(evaluation: Evaluation) -> str:
    against = f" against {_line(evaluation.reference)}" if evaluation.reference else ""
    heading = f"## Quality: {_line(evaluation.task)}{against} on {_line(evaluation.data)}"
    parts = [heading, _limits(evaluation.limits), _metrics(evaluation.metrics)]
    parts += [_histogram(histogram) for histogram in evaluation.histograms]
    parts += [_samples(evaluation), _settings(evaluation), _bullets(evaluation.notes)]
    return "\n\n".join(part for part in parts if part)


def _speed(benchmark: Benchmark) -> str:
    against = f", beside {_line(benchmark.against)}" if benchmark.against else ""
    parts = [f"## Speed in {_line(benchmark.engine)}{against}", _limits(benchmark.limits), _metrics(benchmark.metrics)]
    if benchmark.ratios:
        parts.append(f"Ratios to {_line(benchmark.against)}, of paired runs:\n\n" + _metrics(benchmark.ratios))
    parts += [_settings(benchmark), _bullets(benchmark.notes)]
    return "\n\n".join(part for part in parts if part)


def _limits(limits: tuple[Limit, ...]) -> str:
    rows = [f"- {MARKS[limit.outcome]}: {_line(limit.reason)}" for limit in limits]
    return "\n".join(f"{row} (about {limit.needed:,} units would settle it)" if limit.needed else row
                     for row, limit in zip(rows, limits, strict=True))  # fmt: skip


def _metrics(metrics: tuple[Metric, ...]) -> str:
    """Return the table of metrics, with the columns that any of them fills."""
    columns = ["metric", "value", "95 % interval"]
    has_floor = any(metric.floor is not None for metric in metrics)
    has_share = any(metric.share is not None for metric in metrics)
    columns += ["noise floor"] * has_floor + ["of the machine's roof"] * has_share + ["units"]
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)]]
    for metric in metrics:
        cells = [_line(title(metric.name)), amount(metric, metric.value), interval(metric)]
        cells += [amount(metric, metric.floor)] * has_floor
        cells += ["–" if metric.share is None else percent(metric.share)] * has_share
        lines.append([*cells, f"{metric.units:,}" if metric.units else "–"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if metrics else ""


def _histogram(histogram: Histogram) -> str:
    """Return one sentence: where the middle and the tail of the counts lie."""
    total = sum(histogram.counts)
    if not total:
        return ""
    found = []
    for share in (0.5, 0.99):
        running = 0
        for edge, count in zip(histogram.edges[1:], histogram.counts, strict=True):
            running += count
            if running >= share * total:
                found.append(f"{percent(share)} at or below {number(edge, 3)}")
                break
    return f"Distribution of {_line(title(histogram.name))} over {total:,} values: {', '.join(found)}."


def _samples(evaluation: Evaluation) -> str:
    if not evaluation.samples:
        return ""
    rows = [
        f"| {number(sample.value, 3)} | {_code('…' + sample.before[-CONTEXT:])} **{_code(sample.text)}** "
        f"{_code(sample.after[:CONTEXT] + '…')} | {_line(sample.detail)} |"
        for sample in evaluation.samples[:SHOWN_SAMPLES]
    ]
    return "\n".join(
        ["Worst items, in their text:", "", "| how wrong | text | what each made of it |", "|--:|---|---|", *rows]
    )


def _settings(measured: Evaluation | Benchmark) -> str:
    values = [f"{_line(name)} {_line(str(value))}" for name, value in measured.settings.items()]
    if isinstance(measured, Evaluation):
        values += [f"{_line(side)} by {_line(engine)}" for side, engine in measured.engines.items()]
    else:
        values += [f"{_line(name)} {_line(str(value))}" for name, value in measured.machine.items()]
    lines = [f"Measured with {', '.join(values)}."] if values else []
    lines += [f"Command: {_code(measured.command)}"] if measured.command else []
    return "  \n".join(lines)


def _bullets(notes: tuple[str, ...]) -> str:
    return "\n".join(f"- {_line(note)}" for note in notes)


def _layers(layers: tuple[LayerError, ...]) -> str:
    if not layers:
        return ""
    head = "| place | SQNR | cosine | largest error | clipped | error enters | error arrives |"
    lines = ["## Layers, the worst first", "", head, "|---|--:|--:|--:|--:|--:|--:|"]
    for row in worst_layers(layers):
        cosine = "–" if row.cosine is None else f"{row.cosine:.6f}"
        largest = "–" if row.largest is None else f"{number(row.largest, 3)} rms"
        clipped = "–" if row.clipped is None else percent(row.clipped)
        sides = ["–" if value is None else decibels(value) for value in (row.entering_db, row.arriving_db)]
        cells = [_code(row.name), decibels(row.sqnr_db), cosine, largest, clipped, *sides]
        lines.append("| " + " | ".join(cells) + " |")
    findings = [f"- {_code(row.name)}: {_line(finding)}" for row in layers for finding in row.findings]
    if findings:
        lines += ["", "Faults that rounding does not explain:", "", *findings]
    return "\n".join(lines)


def _headline(card: Card) -> str:
    error = card.mean_error
    cost = "error not measured" if error is None else f"mean error {error:.3%}"
    before, after = card.source_bytes * 8 / max(card.plan.weights, 1), card.plan.bits_per_weight
    heading = f"# {_line(card.name)} → {card.plan.recipe.format}" + " (plan only, nothing written)" * card.dry_run
    return (
        f"{heading}\n\n**{card.ratio:.2f}× smaller**: {size(card.source_bytes)} → **{size(card.nbytes)}** · "
        f"{before:.2f} → **{after:.2f} bits per weight** · {cost} · {card.plan.weights:,} weights"
    )


def _formats(card: Card) -> str:
    groups: dict[str, list[tuple[PlannedTensor, TensorError]]] = {}
    for pair in zip(card.plan.tensors, card.errors, strict=False):
        groups.setdefault(pair[0].format, []).append(pair)
    rows = []
    for name, pairs in sorted(groups.items(), key=lambda item: -sum(t.nbytes for t, _ in item[1])):
        nbytes, weights = sum(t.nbytes for t, _ in pairs), sum(t.weights for t, _ in pairs)
        measured = [(t.weights, e.relative) for t, e in pairs if e.relative is not None]
        mean = math.sqrt(sum(n * e * e for n, e in measured) / max(sum(n for n, _ in measured), 1))
        share = nbytes / max(card.plan.nbytes, 1)
        error = f"{mean:.3%}" if measured else "–"
        bits = nbytes * 8 / max(weights, 1)
        rows.append(f"| {name} | {len(pairs)} | {weights:,} | {bits:.3f} | {size(nbytes)} | {share:.1%} | {error} |")
    head = "| format | tensors | weights | bits each | size | share | error |\n|---|--:|--:|--:|--:|--:|--:|"
    return "## Formats\n\n" + "\n".join([head, *rows])


def _worst(card: Card) -> str:
    known = [(e.relative, t) for t, e in zip(card.plan.tensors, card.errors, strict=False) if e.relative]
    if not known:
        return ""
    rows = [
        f"| {_code(tensor.name)} | {tensor.format} | {error:.3%} |"
        for error, tensor in sorted(known, key=lambda pair: -pair[0])[:WORST]
    ]
    return "\n".join(["## Largest errors", "", "| tensor | format | error |", "|---|---|--:|", *rows])


def _notes(card: Card) -> str:
    fallbacks = card.plan.fallbacks
    parts = []
    if fallbacks:
        weights = sum(tensor.weights for tensor in fallbacks) / max(card.plan.weights, 1)
        parts.append(
            f"## Fallbacks\n\n{len(fallbacks)} tensors ({weights:.1%} of the weights) could not take their format:\n"
        )
        parts.append("| tensor | wanted | got | why |\n|---|---|---|---|")
        parts += [f"| {_code(t.name)} | {t.wanted} | {t.format} | {_line(t.reason)} |" for t in fallbacks]
    else:
        parts.append("## Fallbacks\n\nNone: every tensor has the format that was chosen for it.")
    if card.notes:
        parts.append("\n## Notes\n")
        parts += [f"- {_line(note)}" for note in card.notes]
    return "\n".join(parts)


def _made(card: Card) -> str:
    seconds, recipe = card.seconds, card.plan.recipe
    lines = ["## How it was made", ""]
    if card.command:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", card.command)), default=0))
        lines += [fence, card.command, fence, ""]
    method = recipe.method if recipe.calibration else f"{recipe.method}, search {recipe.search}"
    lines.append(f"- recipe: `{recipe.format}`, method `{method}`, mixture table `{recipe.mixture}`")
    if recipe.calibration:
        lines.append(f"- calibration: {_line(recipe.calibration)}")
    if recipe.importance:
        lines.append(f"- importance: {_line(recipe.importance)}")
    if not card.dry_run:
        lines.append(
            f"- time: {seconds.total:.1f} s (reading {seconds.reading:.1f}, encoding {seconds.encoding:.1f}, "
            f"measuring {seconds.measuring:.1f}, writing {seconds.writing:.1f}; stages overlap)"
        )
    if card.peak_memory_bytes is not None:
        lines.append(f"- peak memory of the process: {size(card.peak_memory_bytes)}")
    lines.append(f"- on: {card.platform}")
    lines.append("- with: " + ", ".join(f"{name} {version}" for name, version in card.versions.items()))
    lines += [f"- source {_code(name)}: sha256 `{digest}`" for name, digest in card.sources.items()]
    lines += [
        f"- artefact {_code(a.name)}: {a.nbytes:,} bytes, sha256 `{a.sha256 or 'not written'}`" for a in card.artefacts
    ]
    return "\n".join(lines)


def _every_tensor(card: Card) -> str:
    is_calibrated = any(error.output is not None for error in card.errors)
    head = (
        "| tensor | shape | from | to | bits | error |" + " method | output error | plain |" * is_calibrated + " why |"
    )
    rows = [head, "|---|---|---|---|--:|--:|" + "---|--:|--:|" * is_calibrated + "---|"]
    for tensor, error in zip(card.plan.tensors, card.errors, strict=False):
        shape = " × ".join(map(str, tensor.shape))
        cells = [_code(tensor.name), shape, _line(tensor.source_dtype), _line(tensor.format)]
        cells += [f"{tensor.bits_per_weight:.2f}", _share(error.relative)]
        if is_calibrated:
            cells += [_line(error.method) or "–", _share(error.output), _share(error.plain)]
        why = f"{tensor.reason}; {error.note}" if error.note else tensor.reason
        rows.append("| " + " | ".join([*cells, _line(why)]) + " |")
    return "## Every tensor\n\n" + "\n".join(rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3%}"


def _line(text: str) -> str:
    """Return `text` as running text on one line: no table, heading or HTML can begin in it."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """Return `text` as code on one line, for a name or a piece of text; ends of lines are shown as ⏎."""
    shown = text.replace("\r", "").replace("\n", "⏎").replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if ticks != "`" or shown[:1].isspace() or shown[-1:].isspace() else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}" if shown else ""
