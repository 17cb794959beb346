"""Paragraphs and tables that are made once, and shown as Markdown and as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tersor.pages.markup import Markup, join, tag
from tersor.pages.tables import table

__all__ = ["TONES", "Block", "Section", "Table", "drawn", "plain_text", "written"]

TONES: Mapping[str, str] = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive"}
"""Cells that are shown as a word with a sign and a colour."""
TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)", re.ASCII)
ESCAPED = re.compile(r"([\\`*_\[\]<>|#])")


@dataclass(frozen=True, slots=True)
class Table:
    """A name that begins with ">" stands over numbers; a cell may have a second line, which says more of the first."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block: TypeAlias = str | Table
"""A paragraph or a table."""


@dataclass(frozen=True, slots=True)
class Section:
    """`name` is for links."""

    title: str
    name: str
    blocks: tuple[Block, ...]


def written(block: Block) -> str:
    """Return a paragraph or a table as Markdown; texts of others cannot mark anything up."""
    if isinstance(block, str):
        return plain_text(block)
    names = [plain_text(column.removeprefix(">")) for column in block.columns]
    ruler = ["---:" if column.startswith(">") else "---" for column in block.columns]
    rows = [names, ruler, *([_line(cell) for cell in row] for row in block.rows)]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"**{plain_text(block.caption)}**\n\n{lines}"


def plain_text(text: str) -> str:
    """Return a text on one line of which Markdown takes nothing for its own."""
    words = " ".join(text.split())
    return ESCAPED.sub(r"\\\1", "".join(letter if letter.isprintable() else "\ufffd" for letter in words))


def _line(cell: str) -> str:
    first, _, more = cell.partition("\n")
    return f"{plain_text(first)} ({plain_text(more)})" if more else plain_text(first)


def drawn(block: Block, tones: Mapping[str, str] = TONES) -> Markup:
    """Return a paragraph or a table as HTML; `tones` names the words that are badges, with their sign and colour."""
    if isinstance(block, str):
        return tag("p", block, class_="note")
    rows = [[_cell(cell, tones, is_first=not index) for index, cell in enumerate(row)] for row in block.rows]
    return table(block.caption, block.columns, rows)


def _cell(text: str, tones: Mapping[str, str], *, is_first: bool) -> object:
    """A cell: states as badges, times that break between day and hour alone, a second line smaller."""
    first, _, more = text.partition("\n")
    shown: object = first if is_first else _state(first, tones) or first
    if match := TIME.fullmatch(first):
        shown = tag("time", tag("span", match[1]), " ", tag("span", match[2]), datetime=f"{match[1]}T{match[2]}Z")
    return join([shown, tag("span", _state(more, tones) or more, class_="more")]) if more else shown


def _state(word: str, tones: Mapping[str, str]) -> Markup | None:
    sign, _, tone = tones.get(word, "").partition(" ")
    return tag("span", f"{sign} {word}", class_=f"badge {tone}") if tone else None
