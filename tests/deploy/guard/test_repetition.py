"""The loop detector against a search through all periods."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.guard.repetition import Loop, LoopDetector

LONGEST, ROUNDS, LENGTH = 6, 3, 7


def stretch(tokens: list[int], period: int) -> int:
    """How many tokens at the end repeat with the period."""
    count = 0
    while count < len(tokens) - period and tokens[-1 - count] == tokens[-1 - count - period]:
        count += 1
    return count + period if count else 0


def loops(tokens: list[int]) -> bool:
    """Whether the end of the tokens is a loop, by trying every period."""
    return any(stretch(tokens, p) >= max(LENGTH, ROUNDS * p) for p in range(1, LONGEST + 1))


@given(st.lists(st.integers(0, 2), max_size=60))
@example([0, 0, 1, 1] * 4)
@example([7, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0])
@example([0, 1, 0, 0, 1, 0] * 4)
@example([0, 0, 0, 0, 0, 1] * 4)  # only windows as long as the period tell it from a row of zeros
def test_a_loop_is_found_at_the_token_that_completes_it(tokens: list[int]) -> None:
    detector = LoopDetector(longest=LONGEST, rounds=ROUNDS, length=LENGTH)
    for end, token in enumerate(tokens, 1):
        loop = detector.add(token)
        assert bool(loop) == loops(tokens[:end])
        if loop:
            assert stretch(tokens[:end], loop.period) >= loop.length >= max(LENGTH, ROUNDS * loop.period)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=64), st.lists(st.integers(0, 50), max_size=200))
def test_any_period_up_to_the_longest_is_found_after_any_text(word: list[int], before: list[int]) -> None:
    detector = LoopDetector(longest=64, rounds=4, length=32)
    for token in before:
        detector.add(token)
    found = [detector.add(word[k % len(word)]) for k in range(max(32, 4 * len(word)))]
    assert found[-1] is not None
    assert len(word) % found[-1].period == 0 or found[-1].period <= len(word)


def test_a_longer_period_is_none() -> None:
    detector = LoopDetector(longest=8, rounds=3, length=9)
    assert not any(detector.add(k % 9) for k in range(200))
    detector = LoopDetector(longest=9, rounds=3, length=9)
    assert any(detector.add(k % 9) for k in range(200))


def test_the_length_counts_the_whole_stretch() -> None:
    detector = LoopDetector(longest=8, rounds=3, length=6)
    found = [detector.add(token) for token in (9, 8, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1)]
    assert found[-2:] == [Loop(3, 9), Loop(3, 10)]
    assert found[:-2] == [None] * 10
    assert Loop(3, 10).rounds == pytest.approx(10 / 3)


def test_memory_is_bounded() -> None:
    detector = LoopDetector(longest=16, rounds=3, length=10)
    for token in range(5000):
        detector.add(token * token % 997)
    assert len(detector._ring) == 49
    assert all(len(level._seen) <= 2 * 16 for level in detector._levels)


def test_a_collision_of_hashes_makes_up_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.deploy.guard.repetition._MODULUS", 1)
    detector = LoopDetector(longest=4, rounds=3, length=6)
    assert not any(detector.add(token) for token in range(100))


@pytest.mark.parametrize("limits", [(0, 3, 1), (1, 2, 1), (1, 3, 0)])
def test_limits_that_cannot_be_are_refused(limits: tuple[int, int, int]) -> None:
    with pytest.raises(SchemeError, match="a loop needs a period"):
        LoopDetector(longest=limits[0], rounds=limits[1], length=limits[2])
