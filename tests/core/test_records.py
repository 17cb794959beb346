"""Records: dataclasses come back from JSON equal, and everything else is refused by place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import FormatError
from tersor.core.records import LARGEST_WHOLE, from_json_text, plain, read_record, to_json_text


@dataclass(frozen=True, slots=True)
class Leaf:
    kind: Literal["a", "b"]
    value: float
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...]
    weights: Mapping[str, int]
    settings: Mapping[str, str | int | float | bool]
    is_good: bool


TREE = Tree("t", (Leaf("a", 1.5), Leaf("b", -math.inf, 3)), {"x": 1}, {"s": "t", "b": True, "i": 2, "f": 0.5}, True)


def test_a_record_comes_back_equal_with_its_types() -> None:
    found = read_record(Tree, json.loads(to_json_text(plain(TREE))), "r")
    assert found == TREE
    assert [type(value) for value in found.settings.values()] == [str, bool, int, float]


@given(
    st.builds(
        Tree,
        name=st.text(st.characters(exclude_categories=())),
        leaves=st.lists(
            st.builds(
                Leaf,
                kind=st.sampled_from(("a", "b")),
                value=st.floats(allow_nan=False),
                count=st.none() | st.integers(1 - LARGEST_WHOLE, LARGEST_WHOLE - 1),
            )
        ).map(tuple),
        weights=st.dictionaries(st.text(), st.integers(0, 99)),
        settings=st.dictionaries(st.text(), st.booleans() | st.integers(0, 9)),
        is_good=st.booleans(),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_record_survives_json(tree: Tree) -> None:
    text = to_json_text(plain(tree))
    assert read_record(Tree, from_json_text(text.encode().decode(), "r"), "r") == tree


def leaf(kind: str = "a", value: object = 1, count: object = None) -> dict[str, Any]:
    return changed(leaves=[{"kind": kind, "value": value, "count": count}])


def changed(**values: Any) -> dict[str, Any]:
    document: dict[str, Any] = plain(TREE)
    return {**document, **values}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"^r: an object is needed, got list$"),
        ({"name": "t"}, r"^r: missing keys \['is_good', 'leaves', 'settings', 'weights'\], unknown keys \[\]$"),
        (changed(more=1), r"^r: missing keys \[\], unknown keys \['more'\]$"),
        (changed(name=1), r"^r: name must be str, got 1$"),
        (changed(is_good=1), r"^r: is_good must be bool, got 1$"),
        (changed(leaves={}), r"^r: leaves: a list is needed, got dict$"),
        (changed(leaves=[{"kind": "a"}]), r"^r: leaves\[0\]: missing keys \['count', 'value'\]"),
        (leaf(kind="c"), r"^r: leaves\[0\]: kind must be 'a' \| 'b', got 'c'$"),
        (leaf(value="1"), r"leaves\[0\]: value must be float, got '1'$"),
        (leaf(count=2.0), r"leaves\[0\]: count must be int \| None, got 2\.0$"),
        (leaf(value=True), r"value must be float, got True$"),
        (leaf(count=2**128), r"count must be int \| None, got 340282366920938463463374607431768211456$"),
        (changed(weights=[1]), r"^r: weights: an object is needed, got list$"),
        (changed(weights={"x": "y"}), r"^r: weights\['x'\] must be int, got 'y'$"),
        (changed(settings={"x": None}), r"^r: settings\['x'\] must be str \| int \| float \| bool, got None$"),
    ],
)
def test_whatever_does_not_fit_is_refused_by_its_place(document: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_record(Tree, document, "r")


@pytest.mark.parametrize("text", ["{", "NaN", '{"a": Infinity}', "[" * 100_000, "1" * 5000])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"^r: not a JSON document"):
        from_json_text(text, "r")


def test_a_name_that_is_no_unicode_can_be_written() -> None:
    text = to_json_text(plain(Leaf("a", math.nan)) | {"kind": "caf\udce9"})
    assert json.loads(text.encode()) == {"kind": "caf\udce9", "value": "NaN", "count": None}
