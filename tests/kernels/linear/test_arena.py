"""Memory for weights: what is put in comes back, side by side, and outlives the arena."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch

from tersor.kernels.linear.arena import LINE, Arena

SMAPS = Path("/proc/self/smaps")


def test_tensors_lie_side_by_side_and_outlive_the_arena() -> None:
    arena, sources = Arena(chunk=4096), [torch.arange(70.0).reshape(7, 10).T, torch.arange(5, dtype=torch.uint8)]
    kept = [arena.keep(source) for source in sources]
    del arena
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype and a.is_contiguous() for a, b in zip(kept, sources, strict=True)
    )
    assert kept[1].data_ptr() - kept[0].data_ptr() == 320  # 280 bytes, rounded up to lines
    kept[0].fill_(9)
    assert torch.equal(kept[1], sources[1])


def test_a_tensor_larger_than_a_chunk_gets_one_of_its_own() -> None:
    arena = Arena(chunk=128)
    first, second = arena.keep(torch.ones(300, dtype=torch.uint8)), arena.keep(torch.ones(3, dtype=torch.uint8))
    assert int(first.sum()) + int(second.sum()) == 303
    assert LINE == 64


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE") or not SMAPS.is_file(), reason="no large pages to ask for here")
def test_large_weights_ask_for_large_pages() -> None:
    kept = Arena().keep(torch.ones(5 << 20, dtype=torch.uint8))
    assert kept.data_ptr() % (1 << 21) == 0
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE)[1:]:
        low, high = (int(end, 16) for end in block.split(None, 1)[0].split("-"))
        if low <= kept.data_ptr() < high:
            flags = re.search(r"VmFlags:(.*)", block)
            assert flags is None or " hg" in flags[1]
            return
    raise AssertionError("the memory is not in the table of the process")
