"""Text of a file that nobody trusts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tersor.core.errors import FormatError, MissingError
from tersor.core.records import read_text, read_yaml


def test_what_is_no_text_too_large_or_absent_is_named(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    with pytest.raises(MissingError, match=r"a\.json: cannot be read \(No such file"):
        read_text(place)
    with pytest.raises(MissingError, match="cannot be read"):
        read_text(tmp_path)
    place.write_bytes("ä\n".encode())
    assert read_text(place) == read_text(place, most=3) == "ä\n"
    with pytest.raises(FormatError, match=r"a\.json: more than 2 bytes; no letter is that large"):
        read_text(place, most=2, too_large="no letter is that large")
    place.write_bytes(b"\xff")
    with pytest.raises(FormatError, match=r"a\.json: not a text file"):
        read_text(place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n- {c: 1, d: 2,\n   c: 3}", "x: 'c' stands twice, in lines 3 and 4; keep one of them"),
        ("a: 1\n'a': 2", "x: 'a' stands twice, in lines 1 and 2"),
        ("<<: {a: 1}\n<<: {b: 1}", "x: '<<' stands twice"),
        ("a: 2001-99-99", r"x: not a YAML document \(month must be"),
        ("a: 1\n--- 2", "x: not a YAML document"),
        ("[" * 5000, "x: not a YAML document"),
    ],
)
def test_yaml_that_says_two_things_or_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_yaml(text, "x")


def test_yaml_is_read_as_its_own_reader_does() -> None:
    text = "base: &b {x: 1, y: [1, 2.5, on, null]}\nnext: {<<: *b, x: 2}\nagain: *b\n1: one\n'1': text\n"
    assert read_yaml(text, "x") == yaml.safe_load(text)
    assert read_yaml("# nothing", "x") is None
    loop = read_yaml("&a [*a]", "x")
    assert isinstance(loop, list)
    assert loop[0] is loop
    with pytest.raises(FormatError, match="x: aliases have no place here"):
        read_yaml(text, "x", depth=9)
    assert read_yaml("[[1]]", "x", depth=2) == [[1]]
    with pytest.raises(FormatError, match="more than 1 deep"):
        read_yaml("[[1]]", "x", depth=1)
