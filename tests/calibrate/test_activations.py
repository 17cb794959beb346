"""Hidden states between blocks are the same numbers, in memory or in a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tersor.calibrate.activations import Activations

torch = pytest.importorskip("torch", reason="hidden states are torch tensors: pip install 'tersor[torch]'")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9])
def test_chunks_cover_every_sequence_once(chunk: int) -> None:
    states = Activations(5, 3, 4, chunk=chunk)
    covered = [index for part in states.chunks() for index in range(part.start, part.stop)]
    assert covered == list(range(5))
    assert all(part.stop - part.start <= chunk for part in states.chunks())


@pytest.mark.parametrize("spilled", [False, True])
def test_what_is_written_is_read_back(spilled: bool, tmp_path: Path) -> None:
    values = torch.randn(5, 3, 4)
    states = Activations(5, 3, 4, chunk=2, spill=tmp_path if spilled else None)
    for part in states.chunks():
        states.write(part, values[part])
    np.testing.assert_array_equal(torch.cat([states.read(part) for part in states.chunks()]).numpy(), values.numpy())
    assert states.nbytes == 5 * 3 * 4 * 4


@pytest.mark.parametrize("spilled", [False, True])
def test_what_was_read_does_not_change_with_the_states(spilled: bool, tmp_path: Path) -> None:
    states = Activations(2, 3, 4, chunk=2, spill=tmp_path if spilled else None)
    read = states.read(slice(0, 2))
    states.write(slice(0, 2), torch.ones(2, 3, 4))
    assert not read.any()
    read += 5
    assert float(states.read(slice(0, 2)).max()) == 1


@pytest.mark.skipif(os.name != "posix", reason="only there has an open file no name")
def test_a_spilled_file_has_no_name_to_leave_behind(tmp_path: Path) -> None:
    states = Activations(2, 3, 4, chunk=2, spill=tmp_path)
    states.write(slice(0, 2), torch.ones(2, 3, 4))
    assert list(tmp_path.iterdir()) == []
