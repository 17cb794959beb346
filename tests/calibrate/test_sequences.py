from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tersor.calibrate.sequences import SHARED, pack, without_shared
from tersor.calibrate.text import Corpus, Document
from tersor.core.errors import MissingError, SchemeError


class Letters:
    """One id a letter; conversations get 1 between turns."""

    def __init__(self, begin: int | None = None) -> None:
        self.begin = begin

    def encode(self, text: str) -> Sequence[int]:
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        return [token for _, content in messages for token in (1, *self.encode(content))]


def corpus(*texts: str) -> Corpus:
    return Corpus("c", tuple(Document(text) for text in texts), "0")


TEXT = "".join(chr(97 + i % 26) for i in range(1000))


def test_sequences_are_cut_from_the_whole_text() -> None:
    found = pack(corpus(TEXT), Letters(), count=10, length=50)
    assert found.ids.shape == (10, 50)
    stream = [ord(letter) for letter in TEXT]
    for row in found.ids.tolist():
        start = next(at for at in range(0, 1000, 50) if stream[at : at + 50] == row)
        assert start % 50 == 0
    assert found.ids[0].tolist() == stream[:50]
    assert found.ids[-1].tolist() == stream[950:]


def test_every_sequence_opens_as_the_model_wants() -> None:
    found = pack(corpus(TEXT), Letters(begin=2), count=10, length=50)
    assert (found.ids[:, 0] == 2).all()
    assert found.ids[0, 1:].tolist() == [ord(letter) for letter in TEXT[:49]]


def test_the_seed_shuffles_documents_and_zero_does_not() -> None:
    texts = corpus(*(letter * 100 for letter in "abcdefghij"))
    plain, again = (pack(texts, Letters(), count=10, length=100, seed=0).ids for _ in range(2))
    shuffled, same = (pack(texts, Letters(), count=10, length=100, seed=7).ids for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(shuffled, same)
    assert [chr(row[0]) for row in plain] == list("abcdefghij")
    assert sorted(row[0] for row in shuffled.tolist()) == sorted(row[0] for row in plain.tolist())
    assert (shuffled != plain).any()


def test_too_little_text_is_told_with_numbers() -> None:
    with pytest.raises(MissingError, match=r"c has 1,000 tokens, 5 sequences of 200; at least 8 are needed"):
        pack(corpus(TEXT), Letters(), count=128, length=200)


def test_a_short_text_gives_fewer_sequences_and_says_so() -> None:
    found = pack(corpus(TEXT), Letters(), count=128, length=100)
    assert len(found.ids) == 10
    assert found.notes == ("c has only 10 sequences of 100 tokens, not 128",)


def test_conversations_go_through_the_template() -> None:
    chat = Corpus("c", (Document("", (("user", "abcd"), ("assistant", "efgh"))),) * 10, "0")
    assert pack(chat, Letters(), count=8, length=10).ids[0].tolist() == [1, 97, 98, 99, 100, 1, 101, 102, 103, 104]


def test_senseless_sizes_are_refused() -> None:
    with pytest.raises(SchemeError, match="at least 1 sequence of 8 tokens, got 0 of 64"):
        pack(corpus(TEXT), Letters(), count=0, length=64)


def test_too_little_text_is_cut_shorter_where_that_is_allowed() -> None:
    found = pack(corpus(TEXT), Letters(begin=2), count=16, length=512, shortest=64)
    assert found.ids.shape == (8, 126)  # 1000 letters in eight, and what opens each
    stream = [ord(letter) for letter in TEXT]
    assert found.ids[:, 1:].ravel().tolist() == stream
    assert found.notes == ("c has only 8 sequences of 126 tokens, not 16 of 512",)
    assert pack(corpus(TEXT), Letters(), count=4, length=512, shortest=64).ids.shape == (4, 250)
    assert pack(corpus(TEXT), Letters(), count=10, length=50, shortest=8).ids.shape == (10, 50)
    with pytest.raises(MissingError, match="at least 8 are needed"):
        pack(corpus(TEXT), Letters(), count=16, length=512, shortest=127)


@pytest.mark.parametrize("length", [8, SHARED, 50])
def test_sequences_that_share_a_stretch_with_what_judges_are_left_out(length: int) -> None:
    rng, width = np.random.default_rng(length), min(SHARED, length)
    unseen = rng.integers(0, 4096, (3, length))
    ids = rng.integers(0, 4096, (40, length))
    for row, at in ((3, 0), (17, length - width), (18, (length - width) // 2)):
        start = int(rng.integers(0, length - width + 1))
        ids[row, at : at + width] = unseen[row % 3, start : start + width]
    ids[30, : width - 1] = unseen[1, : width - 1]  # one token too few
    ids[30, width - 1] = unseen[1, width - 1] + 1
    known = {tuple(row[at : at + width]) for row in unseen.tolist() for at in range(length - width + 1)}
    wanted = [
        row for row in ids.tolist() if not any(tuple(row[at : at + width]) in known for at in range(length - width + 1))
    ]
    assert len(wanted) == 37
    np.testing.assert_array_equal(without_shared(ids, unseen), wanted)


def test_orders_of_the_same_tokens_are_other_text() -> None:
    unseen = np.arange(40)[None]
    assert len(without_shared(unseen[:, ::-1].copy(), unseen)) == 1
    assert len(without_shared(unseen[:0], unseen)) == 0
