"""Invalid UTF-8, whatever the pieces."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tersor.deploy.guard.utf8 import Utf8Check


def places(pieces: list[bytes | str]) -> int:
    """How many places are invalid in a whole reply."""
    check = Utf8Check()
    for piece in pieces:
        check.add(piece)
    return check.end()


@given(st.text(), st.lists(st.integers(0, 200), max_size=20))
@example("a\ufffdb", [2])
def test_sound_text_is_sound_however_it_is_cut(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    at = sorted(min(cut, len(data)) for cut in cuts)
    assert places([data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]) == 0


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=10))
def test_cuts_do_not_change_the_count(data: bytes, cuts: list[int]) -> None:
    at = sorted(min(cut, len(data)) for cut in cuts)
    whole = places([data])
    assert places([data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]) == whole
    try:
        data.decode()
    except UnicodeDecodeError:
        assert whole > 0
    else:
        assert whole == 0


def test_each_invalid_place_counts() -> None:
    assert places([b"a\xffb\xfe", b"c", b"\xc3", b"("]) == 3


def test_half_a_character_counts_only_at_the_end_or_before_text() -> None:
    check = Utf8Check()
    assert check.add("€".encode()[:2]) == 0
    assert check.end() == 1
    check = Utf8Check()
    assert [check.add(piece) for piece in ("€".encode()[:2], "x", "€".encode()[2:])] == [0, 1, 2]


def test_what_the_engine_replaced_counts_in_text() -> None:
    assert places(["a\ufffd", "b", "\udc80"]) == 2
    assert places(["", "häßlich", "日本"]) == 0


def test_a_long_piece_of_garbage_is_read_in_linear_time() -> None:
    assert places([b"\xff" * 50_000]) == 50_000
