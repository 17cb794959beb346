from __future__ import annotations

import doctest
from pathlib import Path

import tersor.formats
from tersor.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs/explanation/number-formats.md"


def test_the_examples_of_the_page_are_true() -> None:
    assert doctest.testfile(str(PAGE), module_relative=False).attempted > 5


def test_the_examples_in_docstrings_are_true() -> None:
    result = doctest.testmod(tersor.formats)
    assert (result.failed, result.attempted) == (0, 2)


def test_the_page_names_every_format_that_has_a_name_of_its_own() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in FORMATS if "-" not in name and f"`{name}`" not in text] == ["q8_k"]
