"""What llama.cpp computes on the way to the logits: the evaluation callback, and ggml's tensors read from outside.

The parent names a file; the chosen rows of the chosen activations go into it as they are computed, one after another,
and the answer says where each lies. So neither side ever holds more than one of them.
Source: ggml.h (ggml_tensor), ggml-backend.h (ggml_backend_sched_eval_callback).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tersor.engines.llama.api import RefusalError
from tersor.engines.llama.session import Session, pieces

__all__ = ["Tensor", "bound_tensors", "trace"]

NODES = re.compile(rb"(?:l_out|ffn_inp|kqv_out)-\d+|result_norm")
"""Activations that are wanted besides the products with weights: after each block, each attention, before the head."""
_TAKE_WEIGHTS = ("MUL_MAT", "MUL_MAT_ID", "GET_ROWS")
_OPERATIONS = 64
"""GET_ROWS, the last of the three, is number 40 or so; the table of names must not be read beyond its end."""
_F32, _I32 = 0, 26
_POINTER = ctypes.c_void_p


class Tensor(ctypes.Structure):
    """Head of ggml_tensor, as far as its name; `bound_tensors` checks that it is laid out so."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", _POINTER),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
        ("operation", ctypes.c_int),
        ("parameters", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("sources", _POINTER * 10),
        ("view_source", _POINTER),
        ("view_offset", ctypes.c_size_t),
        ("data", _POINTER),
        ("name", ctypes.c_char * 64),
    )


class _Arena(ctypes.Structure):
    """ggml_init_params, whole."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", _POINTER), ("no_data", ctypes.c_bool))


Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, _POINTER)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (_POINTER, (_Arena,)),
    "ggml_free": (None, (_POINTER,)),
    "ggml_new_tensor_2d": (_POINTER, (_POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "ggml_mul_mat": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_set_name": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "ggml_op_name": (ctypes.c_char_p, (ctypes.c_int,)),
    "ggml_nbytes": (ctypes.c_size_t, (_POINTER,)),
    "ggml_backend_tensor_get": (None, (_POINTER, _POINTER, ctypes.c_size_t, ctypes.c_size_t)),
}


def bound_tensors(library: ctypes.CDLL) -> dict[str, int]:
    """Declare ggml's functions and return operation name → number, once a tensor made by it shows the layout above.

    Raises RefusalError, beginning with "layout:", where this library's tensors are laid out differently.
    """
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise RefusalError(f"layout: the library lacks a function of ggml: {error}") from error
    arena = library.ggml_init(_Arena(1 << 16, None, False))
    if not arena:
        raise RefusalError("ggml has no memory")
    try:
        matrix, rows = library.ggml_new_tensor_2d(arena, _F32, 8, 4), library.ggml_new_tensor_2d(arena, _F32, 8, 3)
        product = library.ggml_mul_mat(arena, matrix, rows)
        library.ggml_set_name(product, b"layout-1")
        made = Tensor.from_address(product)
        found = (
            *(made.type, made.sizes[:], made.strides[:], made.sources[:3], made.view_source, made.name),
            library.ggml_op_name(made.operation),
        )
    finally:
        library.ggml_free(arena)
    wanted = (_F32, [4, 3, 1, 1], [4, 16, 48, 48], [matrix, rows, None], None, b"layout-1", b"MUL_MAT")
    if found != wanted:
        raise RefusalError(f"layout: ggml_tensor holds {found!r} where {wanted!r} was expected")
    return _operations(library)


def _operations(library: ctypes.CDLL) -> dict[str, int]:
    """The numbers of the operations that take weights: they differ between revisions."""
    numbers: dict[str, int] = {}
    for number in range(_OPERATIONS):
        name = (library.ggml_op_name(number) or b"").decode()
        if name in _TAKE_WEIGHTS:
            numbers[name] = number
            if len(numbers) == len(_TAKE_WEIGHTS):
                break
    return numbers


class _Recorder:
    """Writes the rows of wanted activations to a file, and keeps a table of where they are."""

    def __init__(self, library: ctypes.CDLL, file: BinaryIO, *, rows: Sequence[int], inputs: bool) -> None:
        self.library, self.file, self.inputs = library, file, inputs
        self.wanted = rows
        self.codes = bound_tensors(library)
        self.products = set(self.codes.values())
        self.captures: dict[str, dict[str, Any]] = {}
        self.input_of: dict[str, str] = {}
        self.choice_of: dict[str, str] = {}
        self.failure: Exception | None = None
        self.rows: list[int] = []
        self.count = 0
        self.written: set[str] = set()
        self.names: dict[int, str] = {}
        self.callback = Callback(self._on_node)  # kept: the library holds only a bare pointer to it

    def begin(self, start: int, count: int) -> None:
        """Expect `count` tokens, the first of them at position `start`."""
        self.count, self.written, self.names = count, set(), {}
        self.rows = [row - start for row in self.wanted if start <= row < start + count]

    def _on_node(self, pointer: Any, is_question: bool, _data: object) -> bool:
        """Called before each node, to say whether it is wanted, and once the wanted ones are computed."""
        try:
            node = pointer.contents
            weight = self._weight(node)
            if is_question:
                return bool(weight) or NODES.fullmatch(node.name) is not None
            self._record(node, weight)
        except Exception as error:  # must not pass through C; raised again after decoding
            self.failure = self.failure or error
            return False
        return True

    def _weight(self, node: Any) -> str:
        """The name of the weight that this node multiplies or looks up, "" where it does neither."""
        if node.operation not in self.products or not node.sources[0]:
            return ""
        name = Tensor.from_address(node.sources[0]).name
        return name.decode(errors="replace") if name.endswith(b".weight") else ""

    def _record(self, node: Any, weight: str) -> None:
        if not weight:
            self._write(node.name.decode(errors="replace"), node)
        elif node.operation == self.codes.get("GET_ROWS"):
            self._write(f"lookup {weight}", node)
        elif node.operation == self.codes.get("MUL_MAT_ID"):
            if self.inputs:  # which experts a token takes differs between models: their outputs cannot be compared
                self.input_of[weight] = self._source("input", weight, node.sources[1], axis=2)
                self.choice_of[weight] = self._source("choice", weight, node.sources[2])
        else:
            self._write(f"product {weight}", node)
            if self.inputs:
                self.input_of[weight] = self._source("input", weight, node.sources[1])

    def _source(self, role: str, weight: str, address: int, axis: int = 1) -> str:
        """Write what several products may share under the name of the first of them."""
        name = self.names.setdefault(address, f"{role} {weight}")
        return self._write(name, Tensor.from_address(address), axis)

    def _write(self, key: str, tensor: Any, axis: int = 1) -> str:
        """Write the chosen rows of a tensor whose `axis` counts tokens, "" where it is not so; once per batch."""
        width = tensor.sizes[0] * (tensor.sizes[1] if axis == 2 else 1)
        is_whole = axis == 1 or tensor.sizes[1] == 1 or tensor.strides[1] == 4 * tensor.sizes[0]
        others = tensor.sizes[2] * tensor.sizes[3] if axis == 1 else tensor.sizes[3]
        fits = tensor.type in (_F32, _I32) and tensor.sizes[axis] == self.count and others == 1 and is_whole
        if not fits or tensor.strides[0] != 4:
            return ""
        if key in self.written:
            return key
        self.written.add(key)
        entry = self.captures.setdefault(key, {"columns": width, "groups": width // tensor.sizes[0], "segments": []})
        entry["segments"].append([self.file.tell(), len(self.rows)])
        row = (ctypes.c_int32 if tensor.type == _I32 else ctypes.c_float) * width
        values, floats = row(), ctypes.c_float * width
        for index in self.rows:
            self.library.ggml_backend_tensor_get(
                ctypes.addressof(tensor), ctypes.addressof(values), index * tensor.strides[axis], 4 * width
            )
            self.file.write(floats(*values) if tensor.type == _I32 else values)
        return key


def trace(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    """Run `ids` from an empty cache and write rows of what is computed to the file `path`, as raw float32.

    rows    the positions whose rows are written
    inputs  whether the input of each product with a weight is written too
    Returns captures: name → {columns, groups, segments: [[byte offset, rows], …]}, the names being "lookup WEIGHT",
    "product WEIGHT", "input …", "choice …" and llama.cpp's own ("l_out-3"); input_of and choice_of: WEIGHT → name.
    """
    path = Path(request["path"])
    try:
        path.touch()
    except OSError as error:
        raise RefusalError(f"{path} cannot be written: {error.strerror or error}") from error
    with path.open("wb") as file:
        recorder = _Recorder(engine.library, file, rows=request["rows"], inputs=request["inputs"])
        with engine.observed(recorder.callback):
            for start, ids in pieces(request["ids"], engine.batch_size):
                recorder.begin(start, len(ids))
                engine.decode(ids, start, every=True)
                if recorder.failure is not None:
                    raise RefusalError(f"the computation could not be followed: {recorder.failure}")
    found = {weight: name for weight, name in recorder.input_of.items() if name}
    choices = {weight: name for weight, name in recorder.choice_of.items() if name}
    return {"captures": recorder.captures, "input_of": found, "choice_of": choices}
