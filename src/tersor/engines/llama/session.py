"""One model loaded in llama.cpp, and its context."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tersor.engines.llama.api import F32, FLASH_OFF, Batch, Log, RefusalError, checked

__all__ = ["Session", "pieces"]

_WARN, _ERROR, _CONTINUED = 3, 4, 5


class Session:
    """One loaded model, and unless `vocabulary_only` one context."""

    def __init__(self, library: ctypes.CDLL, path: str, options: dict[str, Any]) -> None:
        self.library, self.options = library, options
        self.log = Log(self._on_log)  # kept: the library holds only a bare pointer to it
        self.loud = False
        self.timed: dict[int, object] = {}  # what timing.py opened, by sequences
        library.llama_log_set(self.log, None)
        library.llama_backend_init()
        parameters = checked(library.llama_model_default_params())
        parameters.gpu_layers = 0
        parameters.vocab_only = options["vocabulary_only"]
        self.model = library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.model:
            raise RefusalError("llama.cpp could not load the model")
        self.vocabulary = library.llama_model_get_vocab(self.model)
        self.size = int(library.llama_vocab_n_tokens(self.vocabulary))
        self.context = None
        self.batch = Batch()
        self.batch_size = 0
        if not options["vocabulary_only"] and options["context"]:
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
        self.context = self._new_context(options, None)
        self.batch = self.library.llama_batch_init(self.batch_size, 0, 1)

    def _new_context(self, options: dict[str, Any], callback: Any) -> Any:
        parameters = checked(self.library.llama_context_default_params())
        parameters.context = options["context"]
        parameters.batch = parameters.micro_batch = self.batch_size
        parameters.outputs_per_sequence = 0  # no limit: every position's logits are wanted
        parameters.threads = parameters.batch_threads = options["threads"]
        parameters.flash_attention = FLASH_OFF
        parameters.key_type = parameters.value_type = F32
        parameters.callback = ctypes.cast(callback, ctypes.c_void_p) if callback is not None else None
        context = self.library.llama_init_from_model(self.model, parameters)
        if not context:
            raise RefusalError("llama.cpp could not open a context")
        return context

    @contextmanager
    def observed(self, callback: Any) -> Iterator[None]:
        """Show `callback` every node that is computed inside the block, which has an empty context of its own."""
        usual = self.context
        self.context = self._new_context(self.options, callback)
        try:
            yield
        finally:
            self.library.llama_free(self.context)
            self.context = usual

    def facts(self) -> dict[str, Any]:
        """What the file says about its vocabulary and its length, for the parent."""
        library, vocabulary = self.library, self.vocabulary
        return {
            "vocabulary_size": self.size,
            "begin": library.llama_vocab_bos(vocabulary) if library.llama_vocab_get_add_bos(vocabulary) else None,
            "adds_end": library.llama_vocab_get_add_eos(vocabulary),
            "trained_context": library.llama_model_n_ctx_train(self.model),
        }

    def clear(self) -> None:
        """Forget every token."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def decode(self, ids: list[int], start: int, *, every: bool, skip: int = 0) -> None:
        """Run at most `batch_size` ids at positions `start`…; logits of every row from `skip` on, or of the last."""
        batch = self.batch
        batch.count = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.position[row] = token, start + row
            batch.sequence_count[row], batch.sequence[row][0] = 1, 0
            batch.wanted[row] = row >= skip if every else row == len(ids) - 1
        status = self.library.llama_decode(self.context, batch)
        if status != 0:
            raise RefusalError(f"llama_decode returned {status} for {len(ids)} tokens at position {start}")

    def row(self, index: int) -> Any:
        """Logits of row `index` of the last batch: a ctypes array of `size` floats, owned by the engine."""
        pointer = self.library.llama_get_logits_ith(self.context, index)
        if not pointer:
            raise RefusalError(f"llama.cpp has no logits for row {index}")
        return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self.size)).contents

    def best(self) -> int:
        """The token with the highest logit after the last batch, the first of equals."""
        values = list(self.row(-1))
        if math.isnan(sum(values)):
            raise RefusalError("the logits hold NaN")
        return values.index(max(values))


def pieces(ids: list[int], size: int) -> list[tuple[int, list[int]]]:
    """Cut `ids` into runs of at most `size`, each with the position where it starts."""
    return [(start, ids[start : start + size]) for start in range(0, len(ids), size)]
