from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tersor.formats.hf.words import pack_words, unpack_words, words_for


def stream(values: list[int], bits: int) -> list[int]:
    """The words of a run of codes, by one large integer."""
    number = sum(value << (bits * place) for place, value in enumerate(values))
    return [number >> (32 * place) & 0xFFFFFFFF for place in range(-(-len(values) * bits // 32))]


@settings(deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 3), st.integers(0, 70), st.data())
def test_words_hold_one_stream_of_bits(bits: int, rows: int, count: int, data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.uint8, (rows, count), elements=st.integers(0, (1 << bits) - 1)))
    words = pack_words(codes, bits)
    assert words.dtype == np.int32
    assert words.shape == (rows, words_for(count, bits))
    assert words.astype(np.uint32).tolist() == [stream(row, bits) for row in codes.tolist()]
    np.testing.assert_array_equal(unpack_words(words, bits, count), codes)


def test_views_that_are_not_contiguous_are_packed_alike() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(8, 8) % 16
    np.testing.assert_array_equal(pack_words(codes.T, 4), pack_words(codes.T.copy(), 4))
    words = pack_words(codes, 4)
    np.testing.assert_array_equal(unpack_words(np.asfortranarray(words), 4, 8), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_codes_take_no_words(bits: int) -> None:
    assert pack_words(np.zeros((3, 0), np.uint8), bits).shape == (3, 0)
