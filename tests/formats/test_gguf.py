from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.formats import get
from tersor.formats.gguf import FORMATS
from tersor.kernels import reference

IMPORTANCE = [fmt.name for fmt in FORMATS if fmt.uses_importance]
ONLY_BEST = ("q8_0", "mxfp4", "tq1_0", "tq2_0")
"""llama.cpp's own search takes no importance for these."""


@pytest.mark.parametrize("search", ["best", "ggml"])
@pytest.mark.parametrize("name", reference.KERNELS)
def test_importance_changes_bytes_exactly_where_the_table_says_so(name: str, search: str) -> None:
    rng = np.random.default_rng(50)
    x = rng.standard_normal((8, 256)).astype(np.float32)
    shares = rng.exponential(size=256).astype(np.float32)
    plain = get(name).encode(x, search=search)
    weighted = get(name).encode(x, importance=shares, search=search)
    assert (plain != weighted).any() == (name in IMPORTANCE and not (search == "ggml" and name in ONLY_BEST))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("share", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("name", IMPORTANCE)
def test_columns_that_calibration_never_saw_are_still_stored_as_they_are(
    name: str, share: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERSOR_KERNELS", backend)
    fmt = get(name)
    x = np.random.default_rng(51).standard_normal((2, 512)).astype(np.float32)
    shares = np.full(512, share, np.float32)
    shares[:256] = 0
    usual, found = (fmt.decode(fmt.encode(x, importance=of), 512) for of in (None, shares))
    errors = [np.square(values - x)[:, :256].sum() for values in (usual, found)]
    assert errors[1] < 1.1 * errors[0]


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
@pytest.mark.parametrize("name", reference.KERNELS)
def test_fitted_grids_are_those_that_matrices_are_encoded_with(name: str, weighted: bool) -> None:
    fmt = get(name)
    rng = np.random.default_rng(52)
    x = rng.standard_normal((5, fmt.block)).astype(np.float32)
    shares = rng.exponential(size=fmt.block).astype(np.float32) if weighted else None
    grid = fmt.fit(torch.from_numpy(x), None if shares is None else torch.from_numpy(shares))
    stored, codes = fmt.unpack(torch.from_numpy(fmt.encode(x, importance=shares)))
    assert torch.equal(grid.values(codes), stored.values(codes))
