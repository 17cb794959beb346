"""Of much text an even share is taken, from its beginning to its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tersor.calibrate.sequences import Encoder, pack
from tersor.calibrate.spread import spread
from tersor.calibrate.text import Corpus, Document


def sizes(documents: list[Document]) -> list[int]:
    return [len(one.text) + sum(len(content) for _, content in one.messages) for one in documents]


def test_what_is_little_or_one_document_stays_as_it_is() -> None:
    few = [Document("some words"), Document("more words")]
    assert spread(few, 20, 8) == few
    assert spread([Document("x" * 1000)], 10, 4) == [Document("x" * 1000)]


@pytest.mark.parametrize("seed", range(5))
def test_about_as_much_is_taken_as_was_asked_for_and_from_everywhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    many = [Document(f"{number:04d} " * int(size)) for number, size in enumerate(rng.exponential(100, 400) + 1)]
    whole, most = sum(sizes(many)), 60_000
    taken = spread(many, most, 400)
    assert most - 1500 < sum(sizes(taken)) < most + 1500
    numbers = np.array([int(one.text.split()[0]) for one in taken])
    weights = np.histogram(numbers, 8, (0, 400), weights=sizes(taken))[0]
    there = np.histogram(np.arange(400), 8, (0, 400), weights=sizes(many))[0]
    assert abs(weights / most - there / whole).max() < 0.05


def test_every_long_document_gives_pieces_that_begin_with_words_in_proportion_to_its_length() -> None:
    long = [
        Document(" ".join(f"{name}{number}" for number in range(count))) for name, count in (("a", 5000), ("b", 500))
    ]
    taken = spread(long, 6000, 500)
    of = [sum(len(one.text) for one in taken if one.text.strip()[0] == name) for name in "ab"]
    assert 5 < of[0] / of[1] < 15
    words = [word for one in taken for word in one.text.split()[:1]]
    assert set(words) <= {word for one in long for word in one.text.split()}
    places = [long[0].text.index(one.text) for one in taken if one.text.strip()[0] == "a"]
    assert min(places) < len(long[0].text) * 0.1
    assert max(places) > len(long[0].text) * 0.9


def test_conversations_stay_whole() -> None:
    chats = [Document("", (("user", "q" * 100), ("assistant", "a" * 900))) for _ in range(50)]
    taken = spread(chats, 10_000, 200)
    assert set(sizes(taken)) == {1000}
    assert len(taken) == 10


class Letters(Encoder):
    """A token a character."""

    begin = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return self.encode("".join(content for _, content in messages))


def test_a_large_first_file_of_a_folder_is_not_all_that_is_read() -> None:
    documents = tuple(Document(f"{letter} " * 50_000) for letter in "abcd")
    found = pack(Corpus("text", documents, ""), Letters(), count=40, length=32)
    assert {chr(token) for token in np.unique(found.ids)} == {" ", "a", "b", "c", "d"}
    shares = [(found.ids == ord(letter)).mean() for letter in "abcd"]
    assert max(shares) < 1.3 * min(shares)
