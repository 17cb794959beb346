"""Text from tokens: whole characters, spaces as they are, nothing of a stop word, and nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.deploy.running.causal.pieces import Held, Pieces


def as_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


TEXTS = st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=30)


@given(TEXTS, TEXTS)
def test_the_pieces_are_the_text(text: str, prompt: str) -> None:
    tokens = text.encode(errors="ignore")
    pieces = Pieces(as_bytes, prompt.encode(errors="ignore"))
    made = [pieces.add(token, is_last=place == len(tokens) - 1) for place, token in enumerate(tokens)]
    assert "".join(made) == tokens.decode()


def test_half_a_character_waits_and_what_is_none_does_not_wait_for_ever() -> None:
    pieces = Pieces(as_bytes, b"a")
    assert [pieces.add(token) for token in "ä".encode()] == ["", "ä"]
    garbage = [pieces.add(0xFF) for _ in range(20)]
    assert "\ufffd" in "".join(garbage[:10])


def test_a_space_at_the_beginning_of_a_word_is_kept() -> None:
    words = {1: "▁over", 2: "▁the"}

    def decode(tokens: Sequence[int]) -> str:  # as SentencePiece does: the first space of all is dropped
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    pieces = Pieces(decode, [1])
    assert [pieces.add(2), pieces.add(1)] == [" the", " over"]


@given(st.lists(st.text("ab", min_size=0, max_size=4), max_size=12), st.lists(st.text("ab", min_size=1), max_size=3))
def test_what_leaves_is_the_text_before_the_first_stop_word(pieces: list[str], stops: list[str]) -> None:
    held, out, records = Held(stops), "", []
    for place, piece in enumerate(pieces):
        text, told = held.add(piece, {"place": place})
        out += text
        records += told
        assert not any(stop in out for stop in stops)
        if held.is_stopped:
            break
    else:
        text, told = held.rest()
        out += text
        records += told
        assert len(records) == len(pieces)
    whole = ""
    for piece in pieces:  # the stop word that is whole first ends it, at the earliest place that it or another has then
        whole += piece
        found = [whole.find(stop) for stop in stops if stop in whole]
        if found:
            whole = whole[: min(found)]
            break
    assert out == whole
    assert [record["place"] for record in records] == list(range(len(records)))
    assert len("".join(pieces[: len(records)])) <= len(out)


def test_a_stop_word_over_several_tokens_holds_them_back() -> None:
    held = Held(["<end>"])
    assert held.add("hello <", {"n": 0}) == ("hello ", [])
    assert held.add("en", {"n": 1}) == ("", [])
    assert held.add("ough", {"n": 2}) == ("<enough", [{"n": 0}, {"n": 1}, {"n": 2}])
    assert held.add("<end>more", {"n": 3}) == ("", [])
    assert held.is_stopped


@pytest.mark.parametrize("stops", [[], ["x"]])
def test_without_a_stop_word_everything_leaves_at_once(stops: list[str]) -> None:
    assert Held(stops).add("abc", {}) == ("abc", [{}])
