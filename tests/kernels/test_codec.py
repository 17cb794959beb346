from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.kernels import codec
from tersor.kernels.layouts import LAYOUTS
from tersor.kernels.lazy import LazyModule

ABSENT = "No module named 'tersor.kernels._native'"


@pytest.fixture
def weights() -> Float32:
    return np.random.default_rng(30).standard_normal((4, 256)).astype(np.float32)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERSOR_KERNELS", raising=False)
    monkeypatch.setattr(codec, "_compiled", lambda: ABSENT)
    codec._warn_once.cache_clear()


class Recorder:
    """Stands where the compiled module would, and writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def encode(
        self, name: str, x: Float32, importance: Float32 | None, search: str, threads: int, *, limit: float
    ) -> Bytes:
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        self.calls.append((name, search, threads))
        return np.zeros((len(x), LAYOUTS[name].row_bytes(x.shape[1])), np.uint8)

    def decode(self, name: str, data: Bytes, columns: int, threads: int) -> Float32:
        assert data.flags.c_contiguous
        self.calls.append((name, columns, threads))
        return np.zeros((len(data), columns), np.float32)

    def isa(self) -> str:
        return "avx2"

    def formats(self) -> list[str]:
        return ["q4_0"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_encoded_decodes_close_to_it(name: str, weights: Float32) -> None:
    decoded = codec.decode(name, codec.encode(name, weights, search="ggml"), 256)
    assert decoded.dtype == np.float32
    error = np.sqrt(np.mean((decoded - weights) ** 2))
    assert error < {"binary": 0.7, "tq1_0": 1, "tq2_0": 1, "q2_k": 0.35, "q3_k": 0.2, "mxfp4": 0.15}.get(name, 0.1)


def test_strided_and_double_input_gives_the_same_bytes(weights: Float32) -> None:
    expected = codec.encode("q4_0", weights, search="ggml")
    wide = np.repeat(weights, 2, axis=1)[:, ::2]
    frozen = weights.copy()
    frozen.flags.writeable = False
    strided: list[Any] = [wide, np.asarray(weights, np.float64), np.asfortranarray(weights), frozen]
    for same in strided:
        np.testing.assert_array_equal(codec.encode("q4_0", same, search="ggml"), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_by_row_and_column(weights: Float32, value: float) -> None:
    weights[2, 7] = value
    with pytest.raises(FormatError, match=rf"the weight at row 2, column 7 is {value}"):
        codec.encode("q4_0", weights)


def test_a_value_beyond_the_format_is_named_with_the_remedy(weights: Float32) -> None:
    weights[1, 3] = -1e6
    with pytest.raises(
        SchemeError, match=r"f16 stores magnitudes up to 6.55e\+04, but row 1, column 3 is -1e\+06: use bf16"
    ):
        codec.encode("f16", weights)
    weights[1, 3] = 3.4e38
    with pytest.raises(SchemeError, match="use f32"):
        codec.encode("q4_0", weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_largest_allowed_values_decode_finite(name: str, weighted: bool) -> None:
    rng = np.random.default_rng(31)
    top = np.nextafter(np.float32(LAYOUTS[name].largest), np.float32(0))
    rows = np.stack(
        [np.sign(rng.standard_normal(256)), rng.uniform(-1, 1, 256), rng.uniform(0.5, 1, 256), np.ones(256)]
    )
    x = np.concatenate([rows, -rows]).astype(np.float32)
    x[np.abs(x) < 1e-3] = 0
    x[:, 0] = np.sign(x[:, 0])
    shares = rng.uniform(0, 1, 256).astype(np.float32) if weighted else None
    data = codec.encode(name, x * top, shares, search="ggml")
    assert np.isfinite(codec.decode(name, data, 256)).all()


def test_shapes_that_do_not_fit_are_refused(weights: Float32) -> None:
    with pytest.raises(ShapeError, match=r"q4_0 encodes a matrix \[rows, columns\], got shape \(256,\)"):
        codec.encode("q4_0", weights[0])
    with pytest.raises(ShapeError, match="250 columns do not divide into blocks of 32"):
        codec.encode("q4_0", weights[:, :250])
    with pytest.raises(ShapeError, match=r"q4_0: 64 columns take uint8 \[rows, 36\], got uint8 \(2, 35\)"):
        codec.decode("q4_0", np.zeros((2, 35), np.uint8), 64)
    with pytest.raises(ShapeError, match="got int32"):
        codec.decode("q4_0", np.zeros((2, 36), np.int32), 64)


def test_bad_importance_is_refused(weights: Float32) -> None:
    with pytest.raises(ShapeError, match=r"one value per column, \[256\], got shape \(255,\)"):
        codec.encode("q4_0", weights, np.ones(255, np.float32))
    for value in (-1.0, np.nan, np.inf):
        shares = np.ones(256, np.float32)
        shares[9] = value
        with pytest.raises(FormatError, match=f"importance of column 9 is {value}: it must be finite and not negative"):
            codec.encode("q4_0", weights, shares)


def test_unknown_searches_are_refused(weights: Float32) -> None:
    with pytest.raises(SchemeError, match="search must be one of best, ggml, got 'fast'"):
        codec.encode("q4_0", weights, search="fast")


def test_no_rows_and_one_row(weights: Float32) -> None:
    assert codec.encode("q4_k", weights[:0]).shape == (0, 144)
    assert codec.decode("q4_k", np.zeros((0, 144), np.uint8), 256).shape == (0, 256)
    assert codec.encode("q4_k", weights[:1], search="ggml").shape == (1, 144)


def test_native_is_used_for_the_formats_that_it_has(weights: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.delenv("TERSOR_KERNELS", raising=False)
    monkeypatch.setattr(codec, "_compiled", lambda: recorder)
    codec.encode("q4_0", weights, threads=3)
    codec.decode("q4_0", np.zeros((2, 36), np.uint8)[::2], 64, threads=1)
    codec.encode("q8_0", weights, search="ggml")
    assert recorder.calls == [("q4_0", "best", 3), ("q4_0", 64, 1)]
    assert codec.backend() == "native (avx2)"


def test_reference_can_be_forced(weights: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(codec, "_compiled", lambda: recorder)
    monkeypatch.setenv("TERSOR_KERNELS", "reference")
    assert codec.encode("q4_0", weights, search="ggml").any()
    assert recorder.calls == []
    assert codec.backend() == "reference (torch), forced by TERSOR_KERNELS"


@pytest.mark.usefixtures("without_native")
def test_a_missing_native_module_is_told_once(weights: Float32, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        codec.encode("q4_0", weights, search="ggml")
        codec.encode("q4_0", weights, search="ggml")
    assert [record.message for record in caplog.records] == [
        f"no native kernels ({ABSENT}): encoding and decoding run in torch, many times slower"
    ]
    assert codec.backend() == f"reference (torch), because the native kernels do not load: {ABSENT}"


@pytest.mark.usefixtures("without_native")
def test_forcing_a_missing_native_module_is_an_error(weights: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_KERNELS", "native")
    with pytest.raises(MissingError, match="TERSOR_KERNELS=native, but the compiled kernels do not load"):
        codec.encode("q4_0", weights)


def test_a_misspelt_choice_of_kernels_is_an_error(weights: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_KERNELS", "fast")
    with pytest.raises(SchemeError, match="TERSOR_KERNELS must be 'native' or 'reference', got 'fast'"):
        codec.encode("q4_0", weights)


def test_importing_the_kernels_does_not_import_torch() -> None:
    code = "import sys, tersor.kernels.codec, tersor.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_absent_optional_module_names_what_to_install() -> None:
    absent = LazyModule("tersor_absent", "torch")
    with pytest.raises(MissingError, match=r"tersor_absent, which is not installed: pip install 'tersor\[torch\]'"):
        absent.zeros(3)  # type: ignore[operator]  # any name will do
