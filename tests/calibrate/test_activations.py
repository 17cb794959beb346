"""Hidden states between blocks are the same numbers, in memory or in a file."""

from __future__ import annotations

import errno
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


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system sets no room aside")
def test_a_disk_without_room_for_all_states_is_told_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="make room there, or name an output elsewhere") as caught:
        Activations(2, 3, 4, chunk=2, spill=tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_room_that_runs_out_while_states_are_written_is_an_error_not_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")

    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    states = Activations(4, 256, 1024, chunk=2, spill=tmp_path)
    assert not states.read(slice(0, 2)).any()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, before[1]))
    try:
        states.write(slice(0, 2), torch.ones(2, 256, 1024))
        with pytest.raises(OSError, match=r"raise the limit of this process \(ulimit -f\)"):
            states.write(slice(2, 4), torch.ones(2, 256, 1024))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
