from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import SchemeError, ShapeError
from tersor.kernels import reference
from tersor.kernels.layouts import LAYOUTS

if TYPE_CHECKING:
    from tests.kernels.conftest import Ggml

GOLDEN = json.loads((Path(__file__).parent / "golden_blocks.json").read_text())
FREE = [name for name, kernel in reference.KERNELS.items() if not kernel.plain]


def encode(name: str, x: Float32, importance: Float32 | None = None) -> Bytes:
    shares = None if importance is None else torch.from_numpy(importance)
    packed: Bytes = reference.encode(name, torch.from_numpy(x), shares).numpy()
    return packed


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", reference.KERNELS)
def test_bytes_equal_those_of_ggml(name: str, weighted: bool, ggml: Ggml, rows: Float32, importance: Float32) -> None:
    shares = importance if weighted else None
    np.testing.assert_array_equal(encode(name, rows, shares), ggml.encode(name, rows, shares))


@pytest.mark.parametrize("name", FREE)
def test_bytes_equal_those_of_ggml_for_flat_and_for_zero_importance(name: str, ggml: Ggml, rows: Float32) -> None:
    for shares in (np.ones(rows.shape[1], np.float32), np.zeros(rows.shape[1], np.float32)):
        np.testing.assert_array_equal(encode(name, rows, shares), ggml.encode(name, rows, shares))


@pytest.mark.parametrize("scale", [1e-38, 1e-41, 1e-45, 3e37, 1e38])
def test_bytes_equal_those_of_ggml_at_the_ends_of_float32(scale: float, ggml: Ggml, importance: Float32) -> None:
    x = (np.random.default_rng(23).uniform(-3, 3, (8, 512)) * scale).astype(np.float32)
    for name in set(reference.KERNELS) - {"mxfp4"}:  # below 2^-125: see the next but one
        for shares in (None, importance):
            np.testing.assert_array_equal(encode(name, x, shares), ggml.encode(name, x, shares), err_msg=name)


def test_mxfp4_exponents_equal_those_of_ggml_beside_every_power_of_two(ggml: Ggml) -> None:
    powers = np.exp2(np.arange(-120, 121, dtype=np.float32))
    below = np.nextafter(powers, np.float32(0))
    tops = np.concatenate([powers, below, np.nextafter(below, np.float32(0)), np.nextafter(powers, np.float32(np.inf))])
    x = tops[:, None] * np.linspace(-0.9, 1, 32, dtype=np.float32)
    np.testing.assert_array_equal(encode("mxfp4", x), ggml.encode("mxfp4", x))


def test_mxfp4_takes_the_smallest_exponent_where_c_leaves_it_open() -> None:
    x = np.full((1, 32), 1e-40, np.float32)
    data = encode("mxfp4", x)
    assert data[0, 0] == 0
    decoded = reference.decode("mxfp4", torch.from_numpy(data), 32)
    assert float(decoded.abs().max()) < 1e-38


@pytest.mark.parametrize("name", reference.KERNELS)
def test_golden_bytes(name: str) -> None:
    entry = GOLDEN[name]
    x = np.array(GOLDEN["weights"], np.float32)[None, : LAYOUTS[name].weights]
    assert encode(name, x).tobytes().hex() == entry["bytes"]
    if "weighted" in entry:
        shares = np.array(GOLDEN["importance"], np.float32)[: x.size]
        assert encode(name, x, shares).tobytes().hex() == entry["weighted"]


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k", "iq4_xs"])
def test_how_many_rows_go_together_never_changes_the_bytes(
    name: str, rows: Float32, importance: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = encode(name, rows, importance)
    monkeypatch.setattr(reference, "AT_ONCE", 1000)
    np.testing.assert_array_equal(encode(name, rows, importance), together)


@pytest.mark.parametrize("name", reference.KERNELS)
def test_no_rows_give_no_bytes(name: str) -> None:
    assert reference.encode(name, torch.empty(0, 256)).shape == (0, LAYOUTS[name].row_bytes(256))
    empty = torch.empty((0, LAYOUTS[name].row_bytes(256)), dtype=torch.uint8)
    assert reference.decode(name, empty, 256).shape == (0, 256)


@pytest.mark.parametrize("name", reference.KERNELS)
def test_input_is_not_written_to(name: str, rows: Float32, importance: Float32) -> None:
    before, shares = rows.copy(), importance.copy()
    encode(name, rows, importance)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(importance, shares)


def test_every_format_with_something_to_search_for_has_a_search_of_our_own() -> None:
    assert set(reference.BEST) == set(FREE)


def test_formats_with_nothing_to_search_for_take_either_search() -> None:
    x = torch.randn(2, 256)
    for name in ("f32", "f16", "bf16", "q8_k", "binary"):
        assert torch.equal(reference.encode(name, x, search="best"), reference.encode(name, x, search="ggml"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"no kernel for the format 'q9_z'; there are kernels for f32, f16"):
        reference.encode("q9_z", torch.ones(1, 32))
    with pytest.raises(SchemeError, match="search must be 'best' or 'ggml', got 'fast'"):
        reference.encode("q4_0", torch.ones(1, 32), search="fast")


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="48 columns do not divide into blocks of 32"):
        reference.encode("q4_0", torch.ones(1, 48))


APART = {("q4_0", True), ("q5_0", True), ("iq4_nl", False)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", reference.KERNELS)
def test_cuda_gives_the_bytes_and_values_of_the_cpu(
    name: str, weighted: bool, rows: Float32, importance: Float32, request: pytest.FixtureRequest
) -> None:
    if (name, weighted) in APART:
        request.applymarker(
            pytest.mark.xfail(reason="a few bytes were others on an H100 with torch 2.11: not explained")
        )
    x, shares = torch.from_numpy(rows), torch.from_numpy(importance)
    near = reference.encode(name, x, shares if weighted else None)
    far = reference.encode(name, x.cuda(), shares.cuda() if weighted else None)
    differing = (near != far.cpu()).nonzero().tolist()
    assert not differing, f"{len(differing)} bytes, the first in row and byte {differing[0]}"
    values, there = reference.decode(name, near, x.shape[1]), reference.decode(name, far, x.shape[1]).cpu()
    torch.testing.assert_close(there, values, rtol=0, atol=0, equal_nan=True)
