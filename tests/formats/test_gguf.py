from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.core.arrays import Bytes, Float32
from tersor.formats import get
from tersor.formats.gguf import FORMATS
from tersor.kernels import codec, reference

IMPORTANCE = [fmt.name for fmt in FORMATS if fmt.uses_importance]


@pytest.mark.parametrize("name", reference.KERNELS)
def test_importance_changes_bytes_exactly_where_the_table_says_so(name: str) -> None:
    rng = np.random.default_rng(50)
    x = rng.standard_normal((8, 256)).astype(np.float32)
    shares = rng.exponential(size=256).astype(np.float32)
    plain = get(name).encode(x, search="ggml")
    weighted = get(name).encode(x, importance=shares, search="ggml")
    assert (plain != weighted).any() == (name in IMPORTANCE)


@pytest.mark.parametrize("name", reference.KERNELS)
def test_packing_the_fitted_grid_gives_encoded_side_information(name: str) -> None:
    fmt = get(name)
    x = np.random.default_rng(51).standard_normal((5, fmt.block)).astype(np.float32)
    grid = fmt.fit(torch.from_numpy(x), search="ggml")
    encoded = torch.from_numpy(fmt.encode(x, search="ggml"))
    stored, codes = fmt.unpack(encoded)
    assert torch.equal(fmt.pack(grid, codes), encoded)
    assert torch.equal(grid.values(codes), stored.values(codes))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
def test_best_grids_are_read_from_the_bytes_of_the_codec(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def encode(name: str, x: Float32, importance: Float32 | None, search: str) -> Bytes:
        asked.append((name, importance is not None, search))
        packed: Bytes = reference.encode(name, torch.from_numpy(x)).numpy()
        return packed

    monkeypatch.setattr(reference, "BEST", {})
    monkeypatch.setattr(codec, "encode", encode)
    block = torch.randn(3, 256, generator=torch.Generator().manual_seed(52))
    grid = get("q4_k").fit(block, torch.ones(256) if weighted else None)
    assert asked == [("q4_k", weighted, "best")]
    codes = grid.round_all(block)
    assert torch.equal(grid.values(codes), get("q4_k").fit(block, search="ggml").values(codes))
