"""Real replies of the embedded model, sound and broken, and what the sentinels find in them.

    python tests/deploy/guard/garbled_replies.py [--replies 200] [--tokens 64]

quantizes the embedded model, breaks the file in each of the ways below, lets every variant answer prompts cut from the
held-out text, and prints how many replies have which finding. The pages of the guard quote this table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

import tersor
from tersor import reference_model
from tersor.decoder import Decoder
from tersor.deploy.guard import Limits, ReplyWatch, Token
from tersor.evaluation.statistics import proportion_interval
from tersor.files.gguf import GgufFile
from tersor.models import Model, load

if TYPE_CHECKING:
    import torch
else:
    from tersor.kernels.lazy import LazyModule

    torch = LazyModule("torch", "torch")

VOCABULARY = 4096
PROMPT_TOKENS, TOP = 16, 20
Q4_1, COLUMNS, BLOCK_BYTES = 3, 32, 20  # ggml: float16 scale, float16 minimum, 32 codes of 4 bits
Blocks = npt.NDArray[np.uint8]


def _with_numbers(blocks: Blocks, change: Callable[[npt.NDArray[np.float16]], None]) -> Blocks:
    """Blocks whose (scale, minimum) pairs were changed in place."""
    made = blocks.copy()
    numbers = made[..., :4].copy().view(np.float16)
    change(numbers)
    made[..., :4] = numbers.view(np.uint8)
    return made


def _zeroed_scale(numbers: npt.NDArray[np.float16]) -> None:
    numbers[..., 0] = 0


def _zero_point_lost(numbers: npt.NDArray[np.float16]) -> None:
    numbers[..., 1] = 0


def _zero_point_off_by_one(numbers: npt.NDArray[np.float16]) -> None:
    numbers[..., 1] += numbers[..., 0]


def _swapped_groups(blocks: Blocks) -> Blocks:
    """Each two neighbouring groups of a row in the wrong order."""
    rows, groups, size = blocks.shape
    return blocks.reshape(rows, groups // 2, 2, size)[:, :, ::-1].reshape(rows, groups, size)


def _swapped_scales(blocks: Blocks) -> Blocks:
    """Codes in order, but the scale and minimum of each group those of its neighbour."""
    made = blocks.copy()
    made[..., :4] = _swapped_groups(blocks)[..., :4]
    return made


FAULTS: Mapping[str, Callable[[Blocks], Blocks]] = {
    "zeroed scale": lambda blocks: _with_numbers(blocks, _zeroed_scale),
    "zero point lost": lambda blocks: _with_numbers(blocks, _zero_point_lost),
    "zero point off by one": lambda blocks: _with_numbers(blocks, _zero_point_off_by_one),
    "swapped group order": _swapped_groups,
    "swapped scales": _swapped_scales,
}
"""Ways to break every matrix of Q4_1 blocks [rows, groups, bytes]."""


@dataclass(frozen=True)
class Reply:
    """Tokens of one reply, which ran into its length cap."""

    tokens: tuple[Token, ...]


def quantized(folder: Path, form: str = "q4_1") -> Path:
    """Quantize the embedded model into `folder`."""
    path = folder / f"{form}.gguf"
    tersor.quantize(reference_model.PATH, form, output=path, search="ggml")
    return path


def broken(path: Path, fault: str) -> Path:
    """Write a copy of a Q4_1 file with a fault."""
    data = bytearray(path.read_bytes())
    with GgufFile(path) as file:
        tensors = [tensor for tensor in file.tensors.values() if tensor.ggml_type == Q4_1]
    for tensor in tensors:
        stored = np.frombuffer(data, np.uint8, tensor.nbytes, tensor.offset)
        blocks = stored.reshape(-1, tensor.shape[-1] // COLUMNS, BLOCK_BYTES)
        data[tensor.offset : tensor.offset + tensor.nbytes] = FAULTS[fault](blocks).tobytes()
    made = path.with_name(f"{fault}.gguf")
    made.write_bytes(data)
    return made


@cache
def text() -> tuple[npt.NDArray[np.int64], tuple[bytes, ...]]:
    """The held-out text as token ids, and the bytes of every token."""
    from tokenizers import Tokenizer  # noqa: PLC0415 (an optional dependency)

    tokenizer: Any = Tokenizer.from_file(str(reference_model.PATH / "tokenizer.json"))
    ids = tokenizer.encode((reference_model.PATH / "held_out.txt").read_text(encoding="utf-8")).ids
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters for bytes
    letters = {chr(byte): byte for byte in plain}
    letters |= {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(plain)))}
    names = (tokenizer.id_to_token(number) for number in range(VOCABULARY))
    pieces = (bytes(letters[letter] for letter in name) if number else b"" for number, name in enumerate(names))
    return np.asarray(ids), tuple(pieces)


def replies(model: Model, count: int, tokens: int, *, temperature: float = 1.0, seed: int = 0) -> list[Reply]:
    """Answer `count` prompts, each `PROMPT_TOKENS` of the held-out text; temperature 0 takes the likeliest token."""
    held_out, pieces = text()
    starts = np.random.default_rng(seed).integers(0, len(held_out) - PROMPT_TOKENS, count)
    ids = torch.from_numpy(np.stack([held_out[start : start + PROMPT_TOKENS] for start in starts]))
    made: list[list[Token]] = [[] for _ in range(count)]
    for chosen, logprobs, entropies, tops, top_ids in _steps(model, ids, tokens, temperature, seed):
        for row in range(count):
            top = tuple(zip(top_ids[row], tops[row], strict=True))
            number = chosen[row]
            made[row].append(Token(number, pieces[number], logprobs[row], top, entropies[row]))
    return [Reply(tuple(row)) for row in made]


def _steps(model: Model, ids: torch.Tensor, tokens: int, temperature: float, seed: int) -> Iterator[list[Any]]:
    """Yield for each step: chosen ids, their logprobs, entropies, the largest logprobs and their ids, as lists."""
    decoder, chance = Decoder(model), torch.Generator().manual_seed(seed)
    blocks, head = [decoder.block(layer) for layer in range(decoder.layers)], decoder.head()
    for _ in range(tokens):
        hidden = decoder.embed(ids)
        for block in blocks:
            hidden = block.forward(hidden)
        logprobs = torch.log_softmax(head.forward(hidden[:, -1:])[:, 0].double(), -1)
        entropies = torch.special.entr(logprobs.exp()).sum(-1)
        tops, top_ids = logprobs.topk(TOP, -1)
        chosen = top_ids[:, :1]
        if temperature:
            chosen = torch.multinomial(torch.softmax(logprobs / temperature, -1), 1, generator=chance)
        yield [x.tolist() for x in (chosen[:, 0], logprobs.gather(1, chosen)[:, 0], entropies, tops, top_ids)]
        ids = torch.cat([ids, chosen], 1)


def watched(reply: Reply, limits: Limits | None = None) -> ReplyWatch:
    """A watch that has seen the whole reply."""
    watch = ReplyWatch(limits, vocabulary=VOCABULARY)
    for token in reply.tokens:
        watch.add(token)
    watch.close("length")
    return watch


def row(name: str, answers: Sequence[Reply]) -> str:
    """A line of the table: replies with a fault, interval, when it was seen, by which sentinels; and what they measure.

    The last two columns are the least and the largest mean entropy of a window, as a share of ln(vocabulary), and the
    longest run of one first choice: of sound replies, what the limits have to leave room for.
    """
    watches = [watched(reply) for reply in answers]
    faults = [[f for f in watch.findings if f.severity == "fault"] for watch in watches]
    share = proportion_interval([float(bool(found)) for found in faults])
    places = sorted(min(int(finding.place) for finding in found) for found in faults if found)
    seen = Counter(finding.sentinel for watch in watches for finding in watch.findings)
    middle = f"{places[len(places) // 2] + 1}" if places else "–"
    sentinels = ", ".join(f"{sentinel} {number}" for sentinel, number in seen.most_common()) or "–"
    hits = sum(map(bool, faults))
    entropies = np.asarray([[token.entropy for token in reply.tokens] for reply in answers], np.float64)
    means = sliding_window_view(entropies, Limits().window, axis=1).mean(-1) / math.log(VOCABULARY)
    runs = [[token.top[0][0] for token in reply.tokens] for reply in answers]
    longest = max(len(list(group)) for choices in runs for _, group in groupby(choices))
    measured = f"{means.min():.3f}–{means.max():.3f} | {longest}"
    return (
        f"| {name} | {hits}/{len(faults)} | {share.low:.1%}–{share.high:.1%} | {middle} | {sentinels} | {measured} |\n"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    parser.add_argument("--replies", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = quantized(Path(folder))
        sources = {"full precision": reference_model.PATH, "q4_1": path, "q4_k_m": quantized(Path(folder), "q4_k_m")}
        for temperature in (1.0, 0.0):
            for name, source in {**sources, **{fault: broken(path, fault) for fault in FAULTS}}.items():
                count = asked.replies if name in sources else max(1, asked.replies // 5)
                made = replies(load(source), count, asked.tokens, temperature=temperature)
                sys.stdout.write(row(f"{name}, {'sampled' if temperature else 'greedy'}", made))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
