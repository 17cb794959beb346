"""llama.cpp's C interface, as far as we call it: structures, signatures, and the check that they are laid out so.

Source: include/llama.h. Its two parameter structures are passed by value and differ between revisions, so only their
heads are declared, and `checked` compares these with the documented defaults.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

__all__ = [
    "F32",
    "FLASH_OFF",
    "Batch",
    "ContextParameters",
    "Log",
    "ModelParameters",
    "RefusalError",
    "bound",
    "checked",
]

_PARAMETER_BYTES = 1024  # more than any revision's structure holds; the surplus is stack that the callee ignores
F32, FLASH_OFF = 0, 0


class ModelParameters(ctypes.Structure):
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


class ContextParameters(ctypes.Structure):
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


class Batch(ctypes.Structure):
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


class RefusalError(Exception):
    """A request that the engine declined; the text goes back to the parent."""


Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (Log, _POINTER)),
    "llama_model_default_params": (ModelParameters, ()),
    "llama_context_default_params": (ContextParameters, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, ModelParameters)),
    "llama_init_from_model": (_POINTER, (_POINTER, ContextParameters)),
    "llama_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_vocab_is_eog": (ctypes.c_bool, (_POINTER, _INT)),
    "llama_vocab_bos": (_INT, (_POINTER,)),
    "llama_vocab_get_add_bos": (ctypes.c_bool, (_POINTER,)),
    "llama_vocab_get_add_eos": (ctypes.c_bool, (_POINTER,)),
    "llama_model_n_ctx_train": (_INT, (_POINTER,)),
    "llama_n_ctx": (ctypes.c_uint32, (_POINTER,)),
    "llama_batch_init": (Batch, (_INT, _INT, _INT)),
    "llama_decode": (_INT, (_POINTER, Batch)),
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


def bound(path: str) -> ctypes.CDLL:
    """The library with every function that we call declared; raises RefusalError where one is absent."""
    try:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise RefusalError(f"the llama.cpp library cannot be used: {error}") from error
    return library


def checked(parameters: Any) -> Any:
    """`parameters` as the library made it, once its head shows the documented defaults in the documented places."""
    for name, expected in parameters.defaults.items():
        value = getattr(parameters, name)
        found = list(value) if isinstance(value, ctypes.Array) else value
        if found != expected:
            kind = type(parameters).__name__
            raise RefusalError(f"layout: {kind}.{name} holds {found!r} where {expected!r} was expected")
    return parameters
