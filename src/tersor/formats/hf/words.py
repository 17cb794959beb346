"""Runs of codes in 32-bit words: value j of a run at bit j·bits of a little-endian stream."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Bytes
from tersor.formats.integer import pack_stream, unpack_stream
from tersor.kernels import codec

__all__ = ["Stored", "Words", "pack_words", "unpack_words", "words_for"]

Stored: TypeAlias = npt.NDArray[Any]
"""A tensor as a file holds it: little-endian, bfloat16 as its 16 bits."""

Words: TypeAlias = npt.NDArray[np.int32]


def words_for(count: int, bits: int) -> int:
    """Words that `count` codes of `bits` bits take.

    >>> words_for(32, 3), words_for(9, 4)
    (3, 2)
    """
    return -(-count * bits // 32)


def pack_words(codes: Bytes, bits: int) -> Words:
    """Pack codes, uint8 [rows, n], into int32 [rows, words]; the bits beyond the last code are 0.

    >>> [f"{word:08x}" for word in pack_words(np.arange(9, dtype=np.uint8)[None], 4)[0]]
    ['76543210', '00000008']
    """
    rows, count = codes.shape
    if not codes.size:
        return np.zeros((rows, words_for(count, bits)), np.int32)
    stream = pack_stream(codec.tensor(np.ascontiguousarray(codes).astype(np.int32)), bits).numpy()
    padded = np.zeros((rows, 4 * words_for(count, bits)), np.uint8)
    padded[:, : stream.shape[1]] = stream
    return padded.view("<i4").astype(np.int32, copy=False)


def unpack_words(words: Words, bits: int, count: int) -> Bytes:
    """Invert `pack_words`: uint8 [rows, count]; the caller has checked that the words hold so many."""
    if not words.size:
        return np.zeros((len(words), count), np.uint8)
    stream = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    used = np.ascontiguousarray(stream[:, : -(-count * bits // 8)])
    codes: Bytes = unpack_stream(codec.tensor(used), bits, count).numpy().astype(np.uint8)
    return codes
