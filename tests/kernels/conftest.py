"""ggml itself as the oracle, through the library that the wheel of xllamacpp carries; and the inputs that hurt."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.arrays import Bytes, Float32
from tersor.formats import get
from tersor.kernels import codec

COLUMNS = 512
SYMBOLS = {
    "q8_0": "q8_0",
    "q4_0": "q4_0",
    "q4_1": "q4_1",
    "q5_0": "q5_0",
    "q5_1": "q5_1",
    "q2_k": "q2_K",
    "q3_k": "q3_K",
    "q4_k": "q4_K",
    "q5_k": "q5_K",
    "q6_k": "q6_K",
    "q8_k": "q8_K",
    "iq4_nl": "iq4_nl",
    "iq4_xs": "iq4_xs",
    "mxfp4": "mxfp4",
    "tq1_0": "tq1_0",
    "tq2_0": "tq2_0",
    "binary": "q1_0",
}


@pytest.fixture
def choose_isa() -> Iterator[Callable[[str], None]]:
    """Return what has the native kernels use an instruction set, or skips where this processor has none of the name."""
    native: Any = codec.native()
    before = None if native is None else native.isa()

    def choose(name: str) -> None:
        if native is None or name not in native.isa_levels():
            pytest.skip(f"no {name} here")
        native.set_isa(name)

    yield choose
    if native is not None:
        native.set_isa(before)


@pytest.fixture(params=["reference", "portable", "avx2", "avx512"])
def kernel(request: pytest.FixtureRequest, choose_isa: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """The definition in place of the kernels that a test module names as KERNELS, and every instruction set here."""
    name: str = request.param
    if name == "reference":
        monkeypatch.setattr(request.module.KERNELS, "on_torch", lambda: None)
    else:
        choose_isa(name)
    return name


class Ggml:
    """Encode and decode with ggml; finite input only."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._library.ggml_quantize_chunk.argtypes = [
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
            ctypes.c_void_p,
        ]

    def encode(self, name: str, x: Float32, importance: Float32 | None = None) -> Bytes:
        """float32 [rows, columns] to uint8 [rows, row_bytes]."""
        fmt = get(name)
        out = np.zeros((len(x), fmt.row_bytes(x.shape[1])), np.uint8)
        if name == "q8_k":  # not a type of weights: only a row function
            self._library.quantize_row_q8_K_ref(*map(ctypes.c_void_p, (x.ctypes.data, out.ctypes.data)), _long(x.size))
            return out
        self._library.ggml_quantize_init(fmt.ggml_type)
        pointer = None if importance is None else importance.ctypes.data
        written = self._library.ggml_quantize_chunk(
            fmt.ggml_type, x.ctypes.data, out.ctypes.data, 0, len(x), x.shape[1], pointer
        )
        assert written == out.nbytes
        return out

    def decode(self, name: str, data: Bytes, columns: int) -> Float32:
        """uint8 [rows, row_bytes] to float32 [rows, columns]."""
        out = np.zeros((len(data), columns), np.float32)
        function = getattr(self._library, f"dequantize_row_{SYMBOLS[name]}")
        function(*map(ctypes.c_void_p, (data.ctypes.data, out.ctypes.data)), _long(out.size))
        return out


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


@pytest.fixture(scope="session")
def ggml() -> Ggml:
    spec = importlib.util.find_spec("xllamacpp")
    found = [] if spec is None or spec.origin is None else [*Path(spec.origin).parent.glob("xllamacpp*.so")]
    if not found:
        pytest.skip("xllamacpp (ggml, the oracle) is not installed: pip install 'tersor[llama]'")
    return Ggml(found[0])


@pytest.fixture(scope="session")
def rows() -> Float32:
    """Every kind of row: gaussian, heavy tails, constant, zero, tiny, huge, spikes, one-sided, few values."""
    rng = np.random.default_rng(20)
    normal = rng.standard_normal
    spike = np.zeros(COLUMNS)
    spike[17] = 1
    kinds = [
        *(normal(COLUMNS), normal(COLUMNS) * 0.02, normal(COLUMNS) ** 3, rng.standard_t(2, COLUMNS)),
        *(np.full(COLUMNS, 0.3), np.full(COLUMNS, -0.7), np.zeros(COLUMNS), -np.zeros(COLUMNS)),
        *(normal(COLUMNS) * 10.0**power for power in (-30, -20, -6, 5, 20, 30)),
        *(np.abs(normal(COLUMNS)), -np.abs(normal(COLUMNS)), spike, -5 * spike[::-1]),
        *(np.where(np.arange(COLUMNS) % 64 < 32, 0, normal(COLUMNS)), np.round(normal(COLUMNS))),
        *(normal(COLUMNS) + 3, np.linspace(-1, 1, COLUMNS), rng.uniform(-1, 1, COLUMNS)),
        *normal((30, COLUMNS)),
    ]
    return np.stack(kinds).astype(np.float32)


@pytest.fixture(scope="session")
def importance() -> Float32:
    """Positive with a heavy tail, every seventh column and one whole group zero."""
    values = np.square(np.random.default_rng(21).standard_normal(COLUMNS)).astype(np.float32)
    values[::7] = 0
    values[64:160] = 0
    return values
