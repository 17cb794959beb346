"""The child process that holds llama.cpp: reads requests on stdin, answers on the former stdout.

Run as `python -I -S llama_worker.py LIBRARY MODEL OPTIONS_JSON`; needs the standard library alone, so that it starts
fast and cannot be misled by files in the current folder. llama.cpp may abort the process on a broken model; the
parent (`llama_cpp.py`) sees the pipe close and reports what stood on stderr last.

Protocol, both ways: frames of a 4-byte little-endian length, then that many bytes of JSON. A reply frame with the key
"floats" is followed by that many raw little-endian float32 values. Each request ends with one frame that has "done"
or "error".

Source: the C interface in llama.cpp's include/llama.h, whose two parameter structures are passed by value. They
differ between revisions, so only their heads are declared, and `_checked` compares these with the documented defaults.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
import sys
from typing import Any, BinaryIO, ClassVar

_FRAME = struct.Struct("<I")
_PARAMETER_BYTES = 1024  # more than any revision's structure holds; the surplus is stack that the callee ignores
_WARN, _ERROR, _CONTINUED = 3, 4, 5
_F32, _FLASH_OFF = 0, 0


class _ModelParameters(ctypes.Structure):
    """Head of llama_model_params; `surplus` carries the rest over unseen."""

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("buffer_overrides", ctypes.c_void_p),
        ("gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int32),
        ("load_mode", ctypes.c_int32),
        ("lazy_mode", ctypes.c_int32),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress", ctypes.c_void_p),
        ("progress_data", ctypes.c_void_p),
        ("overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("extra_buffers", ctypes.c_bool),
        ("surplus", ctypes.c_uint8 * _PARAMETER_BYTES),
    )
    defaults: ClassVar[dict[str, object]] = {
        "devices": None,
        "buffer_overrides": None,
        "gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "main_gpu": 0,
        "tensor_split": None,
        "progress": None,
        "progress_data": None,
        "overrides": None,
        "vocab_only": False,
        "check_tensors": False,
        "extra_buffers": True,
    }


class _ContextParameters(ctypes.Structure):
    """Head of llama_context_params; `surplus` carries the rest over unseen."""

    _fields_ = (
        ("context", ctypes.c_uint32),
        ("batch", ctypes.c_uint32),
        ("micro_batch", ctypes.c_uint32),
        ("sequences", ctypes.c_uint32),
        ("snapshots", ctypes.c_uint32),
        ("outputs", ctypes.c_uint32),
        ("outputs_per_sequence", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("batch_threads", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("rope_scaling", ctypes.c_int32),
        ("pooling", ctypes.c_int32),
        ("attention", ctypes.c_int32),
        ("flash_attention", ctypes.c_int32),
        ("rope", ctypes.c_float * 6),
        ("yarn_original_context", ctypes.c_uint32),
        ("defragment", ctypes.c_float),
        ("callback", ctypes.c_void_p),
        ("callback_data", ctypes.c_void_p),
        ("key_type", ctypes.c_int32),
        ("value_type", ctypes.c_int32),
        ("surplus", ctypes.c_uint8 * _PARAMETER_BYTES),
    )
    defaults: ClassVar[dict[str, object]] = {
        "context": 512,
        "batch": 2048,
        "micro_batch": 512,
        "sequences": 1,
        "snapshots": 0,
        "outputs": 0,
        "outputs_per_sequence": 1,
        "threads": 4,
        "batch_threads": 4,
        "kind": 0,
        "rope_scaling": -1,
        "pooling": -1,
        "attention": -1,
        "flash_attention": -1,
        "rope": [0.0, 0.0, -1.0, -1.0, -1.0, -1.0],
        "yarn_original_context": 0,
        "defragment": -1.0,
        "callback": None,
        "callback_data": None,
        "key_type": 1,
        "value_type": 1,
    }


class _Batch(ctypes.Structure):
    """llama_batch, whole."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("position", ctypes.POINTER(ctypes.c_int32)),
        ("sequence_count", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


class _RefusalError(Exception):
    """A request that the engine declined; the text goes back to the parent."""


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_Log, _POINTER)),
    "llama_model_default_params": (_ModelParameters, ()),
    "llama_context_default_params": (_ContextParameters, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, _ModelParameters)),
    "llama_init_from_model": (_POINTER, (_POINTER, _ContextParameters)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_vocab_is_eog": (ctypes.c_bool, (_POINTER, _INT)),
    "llama_n_ctx": (ctypes.c_uint32, (_POINTER,)),
    "llama_batch_init": (_Batch, (_INT, _INT, _INT)),
    "llama_decode": (_INT, (_POINTER, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_tokenize": (
        _INT,
        (_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_detokenize": (
        _INT,
        (_POINTER, ctypes.POINTER(_INT), _INT, ctypes.c_char_p, _INT, ctypes.c_bool, ctypes.c_bool),
    ),
}


def _bound(path: str) -> ctypes.CDLL:
    """The library with every function that we call declared; raises _RefusalError where one is absent."""
    try:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise _RefusalError(f"the llama.cpp library cannot be used: {error}") from error
    return library


def _checked(parameters: Any) -> Any:
    """`parameters` as the library made it, once its head shows the documented defaults in the documented places."""
    for name, expected in parameters.defaults.items():
        value = getattr(parameters, name)
        found = list(value) if isinstance(value, ctypes.Array) else value
        if found != expected:
            kind = type(parameters).__name__.lstrip("_")
            raise _RefusalError(f"layout: {kind}.{name} holds {found!r} where {expected!r} was expected")
    return parameters


class _Engine:
    """One loaded model, and unless `vocabulary_only` one context."""

    def __init__(self, library: ctypes.CDLL, path: str, options: dict[str, Any]) -> None:
        self.library = library
        self.log = _Log(self._on_log)  # kept: the library holds only a bare pointer to it
        self.loud = False
        library.llama_log_set(self.log, None)
        library.llama_backend_init()
        parameters = _checked(library.llama_model_default_params())
        parameters.gpu_layers = 0
        parameters.vocab_only = options["vocabulary_only"]
        self.model = library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.model:
            raise _RefusalError("llama.cpp could not load the model")
        self.vocabulary = library.llama_model_get_vocab(self.model)
        self.size = int(library.llama_vocab_n_tokens(self.vocabulary))
        self.context = None
        self.batch = _Batch()
        self.batch_size = 0
        if not options["vocabulary_only"]:
            self._open_context(options)

    def _on_log(self, level: int, text: bytes | None, _data: object) -> None:
        if level != _CONTINUED:
            self.loud = level in (_WARN, _ERROR)
        if self.loud and text:
            sys.stderr.buffer.write(text)
            sys.stderr.buffer.flush()

    def _open_context(self, options: dict[str, Any]) -> None:
        rows = max(16, options["batch_bytes"] // (4 * max(1, self.size)))
        self.batch_size = min(512, rows, options["context"])
        parameters = _checked(self.library.llama_context_default_params())
        parameters.context = options["context"]
        parameters.batch = parameters.micro_batch = self.batch_size
        parameters.outputs_per_sequence = 0  # no limit: every position's logits are wanted
        parameters.threads = parameters.batch_threads = options["threads"]
        parameters.flash_attention = _FLASH_OFF
        parameters.key_type = parameters.value_type = _F32
        self.context = self.library.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise _RefusalError("llama.cpp could not open a context")
        self.batch = self.library.llama_batch_init(self.batch_size, 0, 1)

    def clear(self) -> None:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def decode(self, ids: list[int], start: int, *, every: bool) -> None:
        """Run at most `batch_size` ids at positions `start`…; logits of every position or of the last."""
        batch = self.batch
        batch.count = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.position[row] = token, start + row
            batch.sequence_count[row], batch.sequence[row][0] = 1, 0
            batch.wanted[row] = every or row == len(ids) - 1
        status = self.library.llama_decode(self.context, batch)
        if status != 0:
            raise _RefusalError(f"llama_decode returned {status} for {len(ids)} tokens at position {start}")

    def row(self, index: int) -> Any:
        """Logits of row `index` of the last batch: a ctypes array of `size` floats, owned by the engine."""
        pointer = self.library.llama_get_logits_ith(self.context, index)
        if not pointer:
            raise _RefusalError(f"llama.cpp has no logits for row {index}")
        return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self.size)).contents

    def best(self) -> int:
        """The token with the highest logit after the last batch, the first of equals."""
        values = list(self.row(-1))
        if math.isnan(sum(values)):
            raise _RefusalError("the logits hold NaN")
        return values.index(max(values))


def _pieces(ids: list[int], size: int) -> list[tuple[int, list[int]]]:
    return [(start, ids[start : start + size]) for start in range(0, len(ids), size)]


def _logits(engine: _Engine, request: dict[str, Any], output: BinaryIO) -> dict[str, Any]:
    engine.clear()
    for start, ids in _pieces(request["ids"], engine.batch_size):
        engine.decode(ids, start, every=True)
        _send(output, {"floats": len(ids) * engine.size})
        for row in range(len(ids)):
            output.write(memoryview(engine.row(row)).cast("B"))
    return {}


def _generate(engine: _Engine, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    engine.clear()
    ids = request["ids"]
    for start, piece in _pieces(ids, engine.batch_size):
        engine.decode(piece, start, every=False)
    made: list[int] = []
    while len(made) < request["count"]:
        token = engine.best()
        made.append(token)
        if request["stop"] and engine.library.llama_vocab_is_eog(engine.vocabulary, token):
            break
        if len(made) < request["count"]:
            engine.decode([token], len(ids) + len(made) - 1, every=False)
    return {"ids": made}


def _tokenize(engine: _Engine, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    text = request["text"].encode()
    room = len(text) + 16
    while True:
        ids = (ctypes.c_int32 * room)()
        count = engine.library.llama_tokenize(
            engine.vocabulary, text, len(text), ids, room, request["add_special"], request["parse_special"]
        )
        if count >= 0:
            return {"ids": ids[:count]}
        if -count <= room:
            raise _RefusalError(f"llama_tokenize returned {count} for {len(text)} bytes")
        room = -count


def _detokenize(engine: _Engine, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    ids = (ctypes.c_int32 * len(request["ids"]))(*request["ids"])
    room = 16 * len(ids) + 16
    while True:
        text = ctypes.create_string_buffer(room)
        count = engine.library.llama_detokenize(engine.vocabulary, ids, len(ids), text, room, False, True)
        if count >= 0:
            return {"text": text.raw[:count].decode(errors="replace")}
        if -count <= room:
            raise _RefusalError(f"llama_detokenize returned {count} for {len(ids)} tokens")
        room = -count


_OPERATIONS = {"logits": _logits, "generate": _generate, "tokenize": _tokenize, "detokenize": _detokenize}


def _send(output: BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    output.write(_FRAME.pack(len(data)) + data)


def _receive(source: BinaryIO) -> dict[str, Any] | None:
    head = source.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    (size,) = _FRAME.unpack(head)
    message: dict[str, Any] = json.loads(source.read(size))
    return message


def _serve(engine: _Engine, source: BinaryIO, output: BinaryIO) -> None:
    _send(output, {"done": True, "vocabulary_size": engine.size})
    output.flush()
    while (request := _receive(source)) is not None:
        try:
            _send(output, {"done": True, **_OPERATIONS[request["operation"]](engine, request, output)})
        except _RefusalError as refusal:
            _send(output, {"error": str(refusal)})
        output.flush()


def main() -> None:
    """Load the model, then answer requests until stdin closes."""
    library, path, options = sys.argv[1:4]
    output = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)  # whatever native code prints must not enter the protocol
    try:
        engine = _Engine(_bound(library), path, json.loads(options))
    except _RefusalError as refusal:
        _send(output, {"error": str(refusal)})
        output.flush()
        return
    _serve(engine, sys.stdin.buffer, output)
    output.flush()
    os._exit(0)  # the library's own teardown is slow and proves nothing


if __name__ == "__main__":
    main()
