"""How fast llama.cpp evaluates prompts and generates, timed beside it: talking to the parent is not counted.

The contexts here are as people run them (KV cache in float16, flash attention where llama.cpp chooses it), unlike
that of `Session`, whose logits are compared closely. Generated is the likeliest token each time, picked by llama.cpp.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, BinaryIO

from tersor.engines.frames import own_output, receive, send
from tersor.engines.llama.api import Batch, RefusalError, bound, checked
from tersor.engines.llama.session import Session, pieces

__all__ = ["OPERATIONS", "Timed", "main"]

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_synchronize": (None, (_POINTER,)),
    "llama_n_batch": (ctypes.c_uint32, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_model_size": (ctypes.c_uint64, (_POINTER,)),
    "llama_sampler_init_greedy": (_POINTER, ()),
    "llama_sampler_sample": (_INT, (_POINTER, _POINTER, _INT)),
}


@dataclass(slots=True)
class Timed:
    """A context for `len(tokens)` parallel sequences, and where each of them stands.

    tokens     the last token of each sequence, not yet evaluated
    positions  the place of that token
    """

    engine: Session
    context: Any
    sampler: Any
    batch: Batch
    piece: int
    sequences: int
    tokens: list[int]
    positions: list[int]

    def clear(self) -> None:
        """Forget every token."""
        library = self.engine.library
        library.llama_memory_clear(library.llama_get_memory(self.context), True)
        self.tokens, self.positions = [], []

    def put(self, row: int, token: int, position: int, sequence: int, wanted: bool) -> None:
        """Write one row of the batch."""
        batch = self.batch
        batch.token[row], batch.position[row] = token, position
        batch.sequence_count[row], batch.sequence[row][0] = 1, sequence
        batch.wanted[row] = wanted

    def decode(self) -> None:
        """Evaluate the batch, and wait for it."""
        status = self.engine.library.llama_decode(self.context, self.batch)
        if status != 0:
            raise RefusalError(f"llama_decode returned {status} for {self.batch.count} tokens")
        self.engine.library.llama_synchronize(self.context)

    def pick(self, row: int) -> int:
        """The likeliest token after `row` of the batch."""
        return int(self.engine.library.llama_sampler_sample(self.sampler, self.context, row))

    def read(self, sequence: int, ids: list[int]) -> tuple[int, int]:
        """Evaluate one prompt and pick its first token: nanoseconds of the evaluation, and of both."""
        evaluated = 0
        parts = pieces(ids, self.piece)
        for start, part in parts:
            self.batch.count = len(part)
            for row, token in enumerate(part):
                self.put(row, token, start + row, sequence, start + row == len(ids) - 1)
            began = perf_counter_ns()
            self.decode()
            evaluated += perf_counter_ns() - began
        began = perf_counter_ns()
        self.tokens.append(self.pick(len(parts[-1][1]) - 1))
        picked = perf_counter_ns() - began
        self.positions.append(len(ids))
        return evaluated, evaluated + picked

    def step(self) -> None:
        """Evaluate the last token of every sequence, all in one batch, and pick the next ones."""
        for row, (token, position) in enumerate(zip(self.tokens, self.positions, strict=True)):
            self.batch.token[row], self.batch.position[row] = token, position
        self.decode()
        self.tokens = [self.pick(row) for row in range(len(self.tokens))]
        self.positions = [position + 1 for position in self.positions]


def _open(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    """Open a context for `sequences` of `context` tokens each; one that is there is kept."""
    library, sequences = engine.library, request["sequences"]
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if sequences not in engine.timed:
        parameters = checked(library.llama_context_default_params())
        parameters.context, parameters.sequences = sequences * request["context"], sequences
        parameters.threads = parameters.batch_threads = request["threads"]
        context = library.llama_init_from_model(engine.model, parameters)
        if not context:
            raise RefusalError(f"llama.cpp could not open a context of {sequences} x {request['context']} tokens")
        piece = int(library.llama_n_batch(context))
        batch = library.llama_batch_init(max(piece, sequences), 0, 1)
        sampler = library.llama_sampler_init_greedy()
        engine.timed[sequences] = Timed(engine, context, sampler, batch, piece, sequences, [], [])
    return {"loaded_bytes": int(library.llama_model_size(engine.model))}


def _prompt(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    """Evaluate one prompt a sequence, one after another, from an empty cache; with other `threads` from now on."""
    timed = _of(engine, request)
    if not 1 <= len(request["prompts"]) <= timed.sequences or not all(request["prompts"]):
        raise RefusalError(f"1 to {timed.sequences} prompts of a token or more are needed")
    timed.clear()
    times = [timed.read(sequence, ids) for sequence, ids in enumerate(request["prompts"])]
    return {"evaluated_ns": sum(time[0] for time in times), "first_token_ns": sum(time[1] for time in times)}


def _continue(engine: Session, request: dict[str, Any], _output: BinaryIO) -> dict[str, Any]:
    """Generate `steps` more tokens in each sequence that has a prompt: nanoseconds of each step, and the tokens.

    With other `threads` from now on, where they are said.
    """
    timed = _of(engine, request)
    if not timed.tokens:
        raise RefusalError("there is no prompt to continue")
    timed.batch.count = len(timed.tokens)
    for row, (token, position) in enumerate(zip(timed.tokens, timed.positions, strict=True)):
        timed.put(row, token, position, row, True)
    made = [[token] for token in timed.tokens]
    times = []
    for _ in range(request["steps"]):
        began = perf_counter_ns()
        timed.step()
        times.append(perf_counter_ns() - began)
        for sequence, token in zip(made, timed.tokens, strict=True):
            sequence.append(token)
    return {"step_ns": times, "ids": made}


def _of(engine: Session, request: dict[str, Any]) -> Timed:
    timed = engine.timed.get(request["sequences"])
    if not isinstance(timed, Timed):
        raise RefusalError(f"no context for {request['sequences']} sequences was opened")
    if "threads" in request:
        engine.library.llama_set_n_threads(timed.context, request["threads"], request["threads"])
    return timed


OPERATIONS = {"time_open": _open, "time_prompt": _prompt, "time_generation": _continue}
"""What `worker` adds to its own."""


def main() -> None:
    """An empty engine, whose memory is what any model needs on top of itself: started, no model, until stdin closes."""
    output = own_output()
    try:
        bound(sys.argv[1]).llama_backend_init()
        send(output, {"done": True})
    except RefusalError as refusal:
        send(output, {"error": str(refusal)})
    output.flush()
    while receive(sys.stdin.buffer) is not None:
        pass
    os._exit(0)
