"""A report as Markdown, and as one HTML page that is complete in itself."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.core.quantities import percent
from tersor.deploy.gateway.reporting.figures import Compared
from tersor.deploy.gateway.reporting.report import DeploymentReport, ModelReport
from tersor.deploy.gateway.reporting.sections import gateway_section, model_sections, span
from tersor.pages import blocks
from tersor.pages.blocks import Block, Section, plain_text, written
from tersor.pages.document import document, header, main
from tersor.pages.markup import Markup, join, tag

__all__ = ["drawn", "markdown", "page"]

TONES = {
    **blocks.TONES, "better": "✓ pass", "worse": "✗ fail", "not shown": "? inconclusive", "safe": "✓ pass",
    "harmful": "✗ fail", "undecided": "? inconclusive", "critical": "✗ fail", "warning": "! inconclusive",
    "the same": "✓ pass",
}  # fmt: skip
KEYS = ("latency_p50_s", "latency_p99_s", "error_share", "fallback_share", "agreement", "accuracy")


def markdown(report: DeploymentReport) -> str:
    """Return a report as Markdown; names and texts of others cannot mark anything up."""
    lines = [f"# Report on {plain_text(report.name)}", _subtitle(report)]
    for model in report.models:
        lines.append(f"## {plain_text(model.name)}")
        for section in model_sections(model, has_registry=report.has_registry):
            lines += [f"### {section.title}", *map(written, section.blocks)]
    gateway = gateway_section(report)
    lines += [f"## {gateway.title}", *map(written, gateway.blocks)]
    return "\n\n".join(lines) + "\n"


def _subtitle(report: DeploymentReport) -> str:
    since, at = (text[:19].replace("T", " ") for text in (report.since, report.at))
    return f"{since} to {at} UTC, made by tersor {report.version}."


def page(report: DeploymentReport) -> str:
    """Return a report as a whole HTML document, which asks for nothing from anywhere else."""
    gateway = gateway_section(report)
    links = [(f"#m{index}", model.name) for index, model in enumerate(report.models)]
    articles = [
        _article(f"m{index}", model, model_sections(model, has_registry=report.has_registry))
        for index, model in enumerate(report.models)
    ]
    problems = [tag("p", f"Not read: {problem}.", class_="warning") for problem in report.problems]
    end = tag("article", tag("h2", gateway.title, id="gateway"), *map(drawn, gateway.blocks), aria_labelledby="gateway")
    heading = tag("span", "Report on ", tag("strong", report.name))
    top = header(heading, _subtitle(report), [*links, ("#gateway", gateway.title)])
    return document(f"Report on {report.name}", join([top, main(*problems, *articles, end)]))


def _article(name: str, model: ModelReport, sections: Sequence[Section]) -> Markup:
    parts = []
    for section in sections:
        place = f"{name}-{section.name}"
        parts.append(
            tag("section", tag("h3", section.title, id=place), *map(drawn, section.blocks), aria_labelledby=place)
        )
    links = (tag("li", tag("a", section.title, href=f"#{name}-{section.name}")) for section in sections)
    nav = tag("nav", tag("ul", *links), aria_label=f"Sections on {model.name}")
    return tag(
        "article", tag("h2", model.name, id=name), _standing(model), _key_figures(model), nav, *parts,
        aria_labelledby=name,
    )  # fmt: skip


def _standing(model: ModelReport) -> Markup:
    """What is wrong now, in one line."""
    firing = [one for one in model.incidents if one.seconds is not None and one.ended is None]
    beside = f"behind it in full precision {model.fallback}" if model.fallback else "behind it nothing"
    words: list[object] = [tag("strong", model.primary), f", {beside}."]
    if firing:
        names = ", ".join(dict.fromkeys(one.what for one in firing))
        words = [tag("span", f"✗ {names}", class_="badge fail"), " ", *words]
    return tag("p", *words, class_="verdict")


def _key_figures(model: ModelReport) -> Markup | None:
    """The few that tell the most, of the primary, over all that the report is about."""
    windows = [window for window in model.windows if window.variants]
    if not windows:
        return None
    known = {one.figure.name: one for one in windows[-1].variants[0].figures}
    rows = [_key_figure(known[name]) for name in KEYS if name in known and known[name].ours]
    return tag("dl", *rows, class_="figures", aria_label=windows[-1].name) if rows else None


def _key_figure(one: Compared) -> Markup:
    told, full = one.ours, one.full
    assert told is not None, "who shows it has looked"
    shown = span if one.figure.unit == "seconds" else percent
    value, _, unit = shown(told.value).partition(" ")
    more = f"full precision {shown(full.value)}" if full else f"of {told.of:,}" if told.of else ""
    return tag(
        "div", tag("dt", one.figure.title), tag("dd", value, tag("small", f" {unit}") if unit else None),
        tag("dd", more, class_="more") if more else None,
    )  # fmt: skip


def drawn(block: Block) -> Markup:
    """Return a paragraph or a table as HTML."""
    return blocks.drawn(block, TONES)
