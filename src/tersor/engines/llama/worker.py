"""The child process that holds llama.cpp: reads requests on stdin, answers on the former stdout.

Started by `engines/child.py` with the arguments LIBRARY MODEL OPTIONS_JSON. It imports the standard library and our
own modules alone, so that it starts fast and cannot be misled by files in the current folder. llama.cpp may abort the
process on a broken model; the parent sees the pipe close and reports what stood on stderr last.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from time import perf_counter
from typing import Any, BinaryIO

from tersor.engines.frames import own_output, receive, send
from tersor.engines.llama.api import RefusalError, bound
from tersor.engines.llama.session import Session, pieces
from tersor.engines.llama.timing import OPERATIONS as TIMING
from tersor.engines.llama.trace import trace

__all__ = ["main"]


def _logits(engine: Session, request: dict[str, Any], output: BinaryIO) -> dict[str, Any]:
    """Decode ids that go on at `position` (0: from an empty cache); send the logits of those from `first` on."""
    position, first = request["position"], request["first"]
    if position == 0:
        engine.clear()
    for start, ids in pieces(request["ids"], min(engine.batch_size, request["batch"] or engine.batch_size)):
        skip = max(0, first - start)
        engine.decode(ids, position + start, every=True, skip=skip)
        send(output, {"floats": max(0, len(ids) - skip) * engine.size})
        for row in range(skip, len(ids)):
            output.write(memoryview(engine.row(row)).cast("B"))
    return {}


def _generate(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    engine.clear()
    ids = request["ids"]
    for start, piece in pieces(ids, engine.batch_size):
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


def _tokenize(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
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
            raise RefusalError(f"llama_tokenize returned {count} for {len(text)} bytes")
        room = -count


def _detokenize(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    ids = (ctypes.c_int32 * len(request["ids"]))(*request["ids"])
    room = 16 * len(ids) + 16
    while True:
        text = ctypes.create_string_buffer(room)
        count = engine.library.llama_detokenize(engine.vocabulary, ids, len(ids), text, room, False, True)
        if count >= 0:
            return {"text": text.raw[:count].decode(errors="replace")}
        if -count <= room:
            raise RefusalError(f"llama_detokenize returned {count} for {len(ids)} tokens")
        room = -count


_OPERATIONS = {
    "logits": _logits,
    "generate": _generate,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
    "trace": trace,
    **TIMING,
}


def _serve(engine: Session, source: BinaryIO, output: BinaryIO, load_s: float) -> None:
    send(output, {"done": True, **engine.facts(), "load_s": load_s})
    output.flush()
    while (request := receive(source)) is not None:
        try:
            send(output, {"done": True, **_OPERATIONS[request["operation"]](engine, request, output)})
        except RefusalError as refusal:
            send(output, {"error": str(refusal)})
        output.flush()


def main() -> None:
    """Load the model, then answer requests until stdin closes."""
    library, path, options = sys.argv[1:4]
    output = own_output(1 << 20)
    try:
        engine_library = bound(library)
        began = perf_counter()
        engine = Session(engine_library, path, json.loads(options))
    except RefusalError as refusal:
        send(output, {"error": str(refusal)})
        output.flush()
        return
    _serve(engine, sys.stdin.buffer, output, perf_counter() - began)
    output.flush()
    os._exit(0)  # the library's own teardown is slow and proves nothing
