"""HTML and SVG that are escaped by construction: only what this module made is trusted.

Names of tensors, pieces of text and commands come from files that nobody checked. Every `str` that is handed to `tag`
is escaped; `Markup` is not, and is made by `tag` and `join` alone (and by `trusted`, for our own style and script).
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable

__all__ = ["Markup", "coordinate", "escape", "join", "tag", "trusted"]

VOID = {"br", "circle", "hr", "input", "line", "link", "meta", "path", "polygon", "polyline", "rect"}
"""Elements that we use without content: they close themselves, as HTML and XML both allow."""
KEPT_CONTROLS = {"\n", "\t"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def trusted(text: str) -> Markup:
    """Call `text` HTML: only for the constants of this package."""
    return Markup(text)


def escape(text: object) -> Markup:
    """Return any text as HTML; what no document may hold (control characters, halves of pairs) becomes U+FFFD.

    >>> escape('<script a="b">'), escape("a\\x00b")
    ('&lt;script a=&quot;b&quot;&gt;', 'a\N{REPLACEMENT CHARACTER}b')
    """
    if isinstance(text, Markup):
        return text
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(map(_printable, shown))
    return Markup(html.escape(shown))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return one element; children that are None are left out, and so are attributes.

    `class_` is class, `aria_label` is aria-label; numbers become short coordinates.

    >>> tag("p", "1 < 2", class_="small", id=None)
    '<p class="small">1 &lt; 2</p>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            shown = coordinate(value) if isinstance(value, float) else escape(value)
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{shown}"')
    if name in VOID:
        return Markup("".join([*parts, " />"]))
    return Markup("".join([*parts, ">", join(children), f"</{name}>"]))


def join(children: Iterable[object]) -> Markup:
    """Return the children one after the other, escaped where they are not Markup."""
    return Markup("".join(escape(child) for child in children if child is not None))


def coordinate(value: float) -> str:
    """Return a number of user units as short as a hundredth allows.

    >>> coordinate(1.0), coordinate(2.505), coordinate(-0.001)
    ('1', '2.5', '0')
    """
    if not math.isfinite(value):
        return "0"
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0") if abs(value) < 0.005 else _trim(f"{value:.2f}")


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".")


def _printable(character: str) -> str:
    """Return a character that documents may hold; those that turn the direction of text around are not among them."""
    category = unicodedata.category(character)
    is_allowed = category not in ("Cc", "Cs", "Cn", "Cf") or character in KEPT_CONTROLS or character == "\u200d"
    return character if is_allowed else "\ufffd"
