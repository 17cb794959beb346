"""Text as windows of tokens, in the two conventions that perplexity is quoted in.

**chunks**, as llama.cpp's llama-perplexity does it: the text without one last line break is tokenized as a whole, cut
into pieces of `context` tokens that do not overlap, a rest is dropped; the first token of each is replaced by the
beginning-of-text token if the model wants one; only predictions from places context/2 to context - 2 count.

**sliding**: windows begin every `stride` tokens; each token is predicted once, by the first window that holds it, and
so with at least context - stride tokens before it (but for the first window of all).

Source: llama.cpp, tools/perplexity/perplexity.cpp and common/arg.cpp; Hugging Face's page "Perplexity of fixed-length
models" for the second. One pass serves both: where windows of both begin at the same token, they are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError

__all__ = [
    "DEFAULT_CONTEXT",
    "FEWEST_CHUNKS",
    "SMALLEST_CONTEXT",
    "Int32Array",
    "Tokenizing",
    "Window",
    "cut",
    "text_tokens",
]

Int32Array: TypeAlias = npt.NDArray[np.int32]

DEFAULT_CONTEXT = 512
SMALLEST_CONTEXT = 4
FEWEST_CHUNKS = 2  # llama-perplexity refuses less, and one window has no interval


class Tokenizing(Protocol):
    """What cuts text into tokens.

    begin     id that it wants before a text, None for none
    adds_end  whether it wants one after it
    """

    begin: int | None
    adds_end: bool

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of `text`; with `add_special` those before and after it."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """One run of the model.

    begin    place of its first token in the text
    ids      int32 [n]: what the model reads; its predictions after ids[first], ids[first + 1], … are scored
    targets  int32 [n - first]: what came next in the text
    chunk    from which target on it counts for chunks; len(targets) for none
    sliding  from which target on it counts for sliding; len(targets) for none
    """

    begin: int
    ids: Int32Array
    first: int
    targets: Int32Array
    chunk: int
    sliding: int

    @property
    def place(self) -> int:
        """Place of the first target in the text."""
        return self.begin + self.first + 1


def text_tokens(engine: Tokenizing, text: str) -> Int32Array:
    """The tokens of `text` as llama-perplexity makes them: without one last line break, with BOS if the file says so.

    Words that look like control tokens are text. An EOS that the tokenizer adds at the end is left out.
    """
    ids = engine.tokenize(text.removesuffix("\n"), add_special=True)
    return np.array(ids[:-1] if engine.adds_end and ids else ids, np.int32)


def cut(
    tokens: Int32Array,
    *,
    context: int,
    stride: int | None = None,
    begin: int | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> list[Window]:
    """Cut `tokens` into windows of both conventions, in the order of the text.

    context  tokens of a window
    stride   of sliding; None: half of the context, 0: chunks only
    begin    id that replaces the first token of each window, None: nothing does
    limit    how many chunks to take at most; sliding then keeps to these too
    seed     take a random subset of `limit` chunks; None: the first ones

    Raises SchemeError for settings that do not fit, and where the text has fewer than two chunks.
    """
    stride = context // 2 if stride is None else stride
    _check(len(tokens), context, stride, limit)
    count = len(tokens) // context
    chosen = set(range(count))
    if limit is not None and limit < count:
        generator = np.random.default_rng(seed)
        chosen = set(range(limit) if seed is None else generator.choice(count, limit, replace=False).tolist())
    elif stride:
        chosen.add(count)  # the rest, which only sliding reads
    windows = []
    slid = dict(_sliding(len(tokens), context, stride)) if stride else {}
    chunks = {index * context for index in range(count) if index in chosen}
    slid = {at: target for at, target in slid.items() if target // context in chosen}
    for at in sorted(chunks | slid.keys()):
        chunk = at + context // 2 + 1 if at in chunks else at + context
        end, sliding = min(at + context, len(tokens)), slid.get(at, at + context)
        windows.append(_window(tokens, at, end, begin=begin, chunk=chunk, sliding=sliding))
    return windows


def _sliding(total: int, context: int, stride: int) -> list[tuple[int, int]]:
    """Where windows begin, and the place of the first token that each has to predict."""
    found, done, at = [], 1, 0
    while done < total:
        at = min(at, max(0, total - context))
        found.append((at, done))
        done = at + context
        at += stride
    return found


def _window(tokens: Int32Array, at: int, end: int, *, begin: int | None, chunk: int, sliding: int) -> Window:
    start = min(chunk, sliding)
    ids = tokens[at : end - 1].copy()
    if begin is not None:
        ids[0] = begin
    return Window(at, ids, start - at - 1, tokens[start:end], min(chunk, end) - start, min(sliding, end) - start)


def _check(total: int, context: int, stride: int, limit: int | None) -> None:
    if context < SMALLEST_CONTEXT:
        raise SchemeError(f"a window needs at least {SMALLEST_CONTEXT} tokens, got context {context}")
    if not 0 <= stride <= context // 2:
        raise SchemeError(
            f"stride {stride} leaves less than half a window of context; give 1 to {context // 2}, or 0 for no sliding"
        )
    if limit is not None and limit < FEWEST_CHUNKS:
        raise SchemeError(f"at least {FEWEST_CHUNKS} windows are needed for an interval, got {limit}")
    if total < FEWEST_CHUNKS * context:
        shorter = total // FEWEST_CHUNKS
        remedy = f", or --context {shorter}" if shorter >= SMALLEST_CONTEXT else ""
        raise SchemeError(
            f"the text has {total} tokens, {FEWEST_CHUNKS} windows of {context} need {FEWEST_CHUNKS * context}; "
            f"give more text{remedy}"
        )
