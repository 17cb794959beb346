from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tersor.core.errors import ShapeError
from tersor.formats import get


def test_sizes_follow_from_the_block() -> None:
    fmt = get("q4_k")
    assert (fmt.bits_per_weight, fmt.bytes_per_parameter) == (4.5, 0.5625)
    assert fmt.row_bytes(512) == 288
    assert fmt.holds(512)
    assert not fmt.holds(576)
    assert not fmt.holds(-256)


def test_whole_row_formats_count_their_side_information_once_a_row() -> None:
    fmt = get("int3-channel-asym")
    assert fmt.row_bytes(11) == 4 + 1 + 5
    assert fmt.bits_per_weight == 3.0


def test_a_row_that_does_not_divide_names_the_fallback() -> None:
    with pytest.raises(
        ShapeError, match=r"576 columns do not divide into blocks of 256 \(q4_k\); q5_0 takes its place"
    ):
        get("q4_k").row_bytes(576)


def test_fit_refuses_blocks_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"q4_0 fits blocks \[rows, 32\], got \(2, 64\)"):
        get("q4_0").fit(torch.zeros(2, 64), search="ggml")
    with pytest.raises(ShapeError, match=r"importance needs one value per column, \[32\], got \(2, 32\)"):
        get("q4_0").fit(torch.zeros(2, 32), torch.ones(2, 32), search="ggml")


def test_unpack_refuses_bytes_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"q4_0 unpacks \[rows, 18\] bytes, got \(2, 17\)"):
        get("q4_0").unpack(torch.zeros((2, 17), dtype=torch.uint8))


def test_decode_refuses_bytes_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"int4-g32-sym: 64 columns take uint8 \[rows, 40\], got uint8 \(1, 39\)"):
        get("int4-g32").decode(np.zeros((1, 39), np.uint8), 64)


@pytest.mark.parametrize("name", ["q4_0", "f32", "nf4", "nvfp4", "fp8_e4m3", "int4-g64", "int8-tensor"])
def test_matrices_without_rows_are_encoded_and_decoded(name: str) -> None:
    fmt = get(name)
    data = fmt.encode(np.empty((0, 64), np.float32))
    assert data.shape == (0, fmt.row_bytes(64))
    assert fmt.decode(data, 64).shape == (0, 64)
    assert fmt.decode(fmt.encode(np.empty((3, 0), np.float32)), 0).shape == (3, 0)


def test_a_format_is_a_value() -> None:
    fmt = get("q4_k")
    assert get("Q4_K") == fmt
    assert len({fmt, get("q4_k")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        fmt.bits = 3  # type: ignore[misc]  # the error is the subject
