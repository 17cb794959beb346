"""ggml's product of activations with quantized matrices, through the library that the wheel of xllamacpp carries."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np

from tersor.core.arrays import Bytes, Float32

CPU = 0
F32 = 0
TYPES = {"q4_0": 2, "q4_k": 12, "q8_0": 8}
NODES = 2048
_SILENT = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)  # it tells of every matrix


class _Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ImportError("xllamacpp is not installed")
    (found,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    library = ctypes.CDLL(str(found))
    pointers = (
        *("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph_custom", "ggml_backend_cpu_init"),
        *("ggml_backend_dev_by_type", "ggml_backend_dev_backend_reg", "ggml_backend_reg_get_proc_address"),
        *("ggml_backend_alloc_ctx_tensors_from_buft", "ggml_backend_cpu_buffer_type"),
    )
    for name in pointers:
        getattr(library, name).restype = c_void_p
    library.ggml_backend_buft_name.restype = c_char_p
    library.ggml_log_set(_SILENT, None)
    return library


class GgmlLinear:
    """Copies of one packed matrix, multiplied one after the other in one graph.

    packed  uint8 [rows, row_bytes] in the GGUF type `name`
    copies  how many, so that the cache holds none of them
    """

    def __init__(self, name: str, packed: Bytes, columns: int, tokens: int, *, copies: int, threads: int) -> None:
        self._ggml, self._rows, self._tokens = _library(), len(packed), tokens
        weights, products = self._context(), self._context()
        new = self._ggml.ggml_new_tensor_2d
        matrices = [c_void_p(new(weights, TYPES[name], c_int64(columns), c_int64(len(packed)))) for _ in range(copies)]
        kind = self._repacking() if name in ("q4_0", "q4_k") else None
        self.repacked = kind is not None
        plain = c_void_p(self._ggml.ggml_backend_cpu_buffer_type())
        self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(weights, kind or plain)
        for matrix in matrices:
            self._ggml.ggml_backend_tensor_set(
                matrix, c_void_p(packed.ctypes.data), c_size_t(0), c_size_t(packed.nbytes)
            )
        self._x = c_void_p(new(products, F32, c_int64(columns), c_int64(tokens)))
        self._graph = c_void_p(self._ggml.ggml_new_graph_custom(products, c_size_t(NODES), c_bool(False)))
        for matrix in matrices:
            self._y = c_void_p(self._ggml.ggml_mul_mat(products, matrix, self._x))
            self._ggml.ggml_build_forward_expand(self._graph, self._y)
        self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(products, plain)
        self._backend = c_void_p(self._ggml.ggml_backend_cpu_init())
        self._ggml.ggml_backend_cpu_set_n_threads(self._backend, c_int(threads))

    def feed(self, x: Float32) -> None:
        """Set the activations, [tokens, columns]."""
        self._ggml.ggml_backend_tensor_set(self._x, c_void_p(x.ctypes.data), c_size_t(0), c_size_t(x.nbytes))

    def run(self) -> None:
        """Multiply by every copy."""
        self._ggml.ggml_backend_graph_compute(self._backend, self._graph)

    def result(self) -> Float32:
        """Return the last product, [tokens, rows]."""
        y = np.empty((self._tokens, self._rows), np.float32)
        self._ggml.ggml_backend_tensor_get(self._y, c_void_p(y.ctypes.data), c_size_t(0), c_size_t(y.nbytes))
        return y

    def _context(self) -> c_void_p:
        return c_void_p(self._ggml.ggml_init(_Parameters(16 << 20, None, True)))

    def _repacking(self) -> c_void_p | None:
        """The kind of memory in which ggml rearranges matrices for its fastest kernels; None: this build has none."""
        device = c_void_p(self._ggml.ggml_backend_dev_by_type(c_int(CPU)))
        registry = c_void_p(self._ggml.ggml_backend_dev_backend_reg(device))
        address = self._ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
        index = 0
        while kinds[index]:
            if self._ggml.ggml_backend_buft_name(c_void_p(kinds[index])) == b"CPU_REPACK":
                return c_void_p(kinds[index])
            index += 1
        return None
