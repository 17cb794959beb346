"""Windows are those of llama-perplexity, and every token is predicted once by the sliding ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.language.windows import Window, cut, text_tokens

BEGIN = 1_000_000
Prediction = tuple[tuple[int, ...], int]
"""What the model has read, and the token that is predicted from it."""


def as_llama_perplexity(tokens: Sequence[int], context: int, begin: int | None) -> list[Prediction]:
    """Its loop, written anew from its source: chunks side by side, the second half of each is scored."""
    made = []
    for chunk in range(len(tokens) // context):
        piece = list(tokens[chunk * context : (chunk + 1) * context])
        if begin is not None:
            piece[0] = begin
        for place in range(context // 2, context - 1):
            made.append((tuple(piece[: place + 1]), tokens[chunk * context + place + 1]))
    return made


def predictions(windows: Sequence[Window], kind: str) -> Iterator[Prediction]:
    for window in windows:
        for index in range(getattr(window, kind), len(window.targets)):
            yield tuple(window.ids[: window.first + index + 1].tolist()), int(window.targets[index])


@given(
    context=st.integers(4, 33), more=st.integers(0, 150), begin=st.sampled_from([None, BEGIN]), part=st.integers(0, 16)
)
@example(context=4, more=0, begin=BEGIN, part=2)
@example(context=7, more=1, begin=None, part=3)
@example(context=16, more=15, begin=BEGIN, part=8)
def test_chunks_are_those_of_llama_perplexity(context: int, more: int, begin: int | None, part: int) -> None:
    tokens = np.arange(2 * context + more, dtype=np.int32)
    windows = cut(tokens, context=context, begin=begin, stride=min(part, context // 2))
    assert list(predictions(windows, "chunk")) == as_llama_perplexity(tokens.tolist(), context, begin)
    assert all(len(window.ids) < context for window in windows)


@given(context=st.integers(4, 33), more=st.integers(0, 150), part=st.integers(1, 16))
@example(context=4, more=0, part=1)
@example(context=8, more=3, part=4)
def test_sliding_predicts_every_token_once_with_enough_before_it(context: int, more: int, part: int) -> None:
    tokens = np.arange(2 * context + more, dtype=np.int32)
    stride = min(part, context // 2)
    made = list(predictions(cut(tokens, context=context, stride=stride), "sliding"))
    assert [target for _, target in made] == list(range(1, len(tokens)))
    for read, target in made:
        assert read == tuple(range(target - len(read), target))
        assert len(read) >= min(target, context - stride)


def test_places_are_those_of_the_targets_in_the_text() -> None:
    tokens = np.arange(100, dtype=np.int32)
    for window in cut(tokens, context=12, stride=5):
        assert window.place == window.targets[0]


def test_windows_of_both_conventions_that_begin_together_are_one() -> None:
    windows = cut(np.arange(64, dtype=np.int32), context=16, stride=8)
    assert [window.begin for window in windows] == [0, 8, 16, 24, 32, 40, 48]


def test_without_sliding_only_the_scored_half_is_predicted() -> None:
    windows = cut(np.arange(64, dtype=np.int32), context=16, stride=0)
    assert [window.targets.tolist() for window in windows] == [list(range(at + 9, at + 16)) for at in (0, 16, 32, 48)]
    assert not list(predictions(windows, "sliding"))


def test_a_random_subset_of_chunks_is_the_same_for_the_same_seed() -> None:
    tokens = np.arange(1000, dtype=np.int32)

    def chosen(seed: int | None) -> list[int]:
        return [target // 10 for _, target in predictions(cut(tokens, context=10, limit=5, seed=seed), "chunk")]

    assert sorted(set(chosen(None))) == [0, 1, 2, 3, 4]
    assert chosen(3) == chosen(3) != chosen(4)
    assert len(set(chosen(3))) == 5
    slid = {target // 10 for _, target in predictions(cut(tokens, context=10, limit=5, seed=3), "sliding")}
    assert slid == set(chosen(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 3}, "a window needs at least 4 tokens, got context 3"),
        ({"context": 8, "stride": 5}, "stride 5 leaves less than half a window of context; give 1 to 4"),
        ({"context": 8, "stride": -1}, "stride -1"),
        ({"context": 8, "limit": 1}, "at least 2 windows are needed for an interval, got 1"),
        ({"context": 50}, r"has 99 tokens, 2 windows of 50 need 100; give more text, or --context 49"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        cut(np.arange(99, dtype=np.int32), **settings)


def test_a_text_of_no_use_gets_no_advice_to_cut_it_smaller() -> None:
    with pytest.raises(SchemeError, match=r"has 5 tokens, 2 windows of 8 need 16; give more text$"):
        cut(np.arange(5, dtype=np.int32), context=8)


class Letters:
    """A tokenizer: one token a character, 1 before and, if it is asked to, 2 after all."""

    def __init__(self, *, adds_end: bool) -> None:
        self.adds_end = adds_end

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        body = [ord(letter) for letter in text]
        return [1, *body, *([2] if self.adds_end else [])] if add_special else body


@pytest.mark.parametrize("adds_end", [False, True])
def test_one_last_line_break_and_an_added_end_are_left_out(adds_end: bool) -> None:
    engine = cast("LlamaCpp", Letters(adds_end=adds_end))
    assert text_tokens(engine, "ab\n\n").tolist() == [1, 97, 98, 10]
