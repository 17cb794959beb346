"""Whole pages: the dashboard's frame, to sign in, to confirm an order, and errors. No inline script or style."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tersor.deploy.gateway.dashboard.assets import place
from tersor.deploy.gateway.operating.access import Viewer
from tersor.pages.markup import Markup, join, tag

__all__ = ["confirmation", "document", "outcome", "sign_in"]

HTMX = {
    "allowEval": False,
    "includeIndicatorStyles": False,
    "selfRequestsOnly": True,
    "historyCacheSize": 0,
    # What was swapped in is taken up at once: a link that is pressed before would open a page instead of the dialog.
    "defaultSettleDelay": 0,
    "allowScriptTags": False,
    "responseHandling": [{"code": "204", "swap": False}, {"code": "[2345]..", "swap": True}],
}
SCRIPTS = ("htmx.min.js", "htmx-sse.min.js", "uplot.min.js", "dashboard.js")


def document(title: str, *content: object, is_live: bool = False) -> str:
    """Return a page as HTML; scripts are there where it `is_live` alone."""
    styles = ("dashboard.css", *(["uplot.min.css"] if is_live else []))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="htmx-config", content=json.dumps(HTMX)) if is_live else None,
        tag("title", title),
        # An icon that is no request: browsers ask for /favicon.ico else.
        tag("link", rel="icon", href="data:,"),
        *(tag("link", rel="stylesheet", href=place(name)) for name in styles),
        *(tag("script", src=place(name), defer="") for name in SCRIPTS if is_live),
    )
    skip = tag("a", "Skip to the models", href="#models", class_="skip") if is_live else None
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', skip, *content), lang='en')}\n"


def sign_in(problem: str) -> str:
    """Return the page with the form that takes a key; `problem` says why the last try was refused."""
    form = tag(
        "form",
        tag("label", "API key", for_="key"),
        _field("key", type="password", autocomplete="current-password", autofocus=""),
        tag("button", "Sign in", type="submit", class_="button first"),
        method="post",
        action="/dashboard/sign-in",
        class_="card",
    )
    told = tag("p", problem, class_="warning", role="alert") if problem else None
    return document(
        "Sign in · tersor",
        tag("header", tag("h1", "tersor"), tag("p", "A key of this deployment is wanted.", class_="subtitle")),
        tag("main", told, form, class_="narrow"),
    )


def confirmation(action: str, summary: str, model: str | None, viewer: Viewer) -> Markup:
    """Return the form that has an order done: what it does, why it is given, and whether it is meant."""
    of = f" {model}" if model else ""
    hidden = {"action": action, "model": model, "csrf": viewer.csrf}
    form = tag(
        "form",
        tag("label", "Reason, for the audit log", for_="why"),
        _field("why", type="text", maxlength="400", autocomplete="off", autofocus=""),
        *(_hidden(name, value) for name, value in hidden.items() if value is not None),
        tag(
            "div",
            tag("button", f"Yes, {action}", type="submit", class_="button first"),
            tag("a", "Cancel", href="/", class_="button", data_close=""),
            class_="buttons",
        ),
        method="post",
        action="/dashboard/act",
        hx_post="/dashboard/act",
        hx_target="#ask-body",
    )
    return join([tag("h2", f"{action}{of}?", id="ask-title"), tag("p", summary), form])


def outcome(heading: str, lines: Sequence[str], *, is_done: bool) -> Markup:
    """Return what became of an order."""
    mark = "pass" if is_done else "fail"
    return join(
        [
            tag("h2", heading, id="ask-title"),
            tag("p", tag("span", "✓ done" if is_done else "✗ not done", class_=f"badge {mark}"), role="status"),
            *(tag("p", line) for line in lines),
            tag("a", "Back to the dashboard", href="/", class_="button first", data_close=""),
        ]
    )


def _hidden(name: str, value: str) -> Markup:
    return _input(name, type="hidden", value=value)


def _field(name: str, **attributes: object) -> Markup:
    return _input(name, id=name, required="", **attributes)


def _input(name: str, **attributes: object) -> Markup:
    return tag("input", name=name, **attributes)
