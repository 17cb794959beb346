"""The frame of every page: one HTML document that needs nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from tersor.pages.markup import Markup, tag, trusted

__all__ = ["document", "header", "main", "policy"]


def document(heading: str, content: Markup) -> str:
    """Return a whole HTML document in Unicode that any encoding can hold; `heading` is its title.

    It asks for nothing: no font, script, picture or style from elsewhere, and its policy forbids them all.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        trusted(f'<meta http-equiv="Content-Security-Policy" content="{policy()}" />'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="tersor"),
        tag("title", heading),
        trusted(f"<style>{_asset('style.css')}</style>"),
    )
    skip = tag("a", "Skip to the report", href="#report", class_="skip")
    foot = tag(
        "footer", tag("p", "Made by tersor. This page is complete in itself: it loads nothing and sends nothing.")
    )
    body = tag("body", skip, content, foot, trusted(f"<script>{_asset('sort.js')}</script>"))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def policy() -> str:
    """Return the Content-Security-Policy of such a document: its own style and script by their hashes, nothing else."""
    style, script = (_digest(_asset(name)) for name in ("style.css", "sort.js"))
    return f"default-src 'none'; style-src '{style}'; script-src '{script}'"


def header(heading: Markup, subtitle: str, links: Sequence[tuple[str, str]]) -> Markup:
    """Return the top of a page; `links`: target and text of each section."""
    items = (tag("li", tag("a", text, href=target)) for target, text in links)
    return tag(
        "header",
        tag("h1", heading),
        tag("p", subtitle, class_="subtitle"),
        tag("nav", tag("ul", *items), aria_label="Sections"),
    )


def main(*parts: Markup | None) -> Markup:
    """Return what the page is about."""
    return tag("main", *parts, id="report", tabindex="-1")


@cache
def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
