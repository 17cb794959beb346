"""Text of a file that nobody trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.core.errors import FormatError, MissingError
from tersor.core.records import read_text


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
