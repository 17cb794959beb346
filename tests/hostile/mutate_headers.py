"""Mutates sound files and opens them, in a process whose memory is limited; run by test_mutated_headers.py.

    python mutate_headers.py FOLDER KIND COUNT SEED

FOLDER holds the sound sample. Prints one JSON object: how many mutants were opened, refused, and the longest time. Any
exception but a deliberate one ends the process.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tersor.core.errors import TersorError
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.files.gguf import GgufFile, check
from tersor.files.safetensors import SafetensorsFile
from tersor.models import load

EXTRA_BYTES = 200 * 2**20
NUMBERS = (
    0,
    1,
    2,
    3,
    31,
    32,
    33,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"1e400",
    b"NaN",
    b"\xff",
    b"../",
    b"0" * 40,
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to four faults."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(made)) if made else 0
        match rng.randrange(8):
            case 0 | 1:
                if made:
                    made[where] ^= 1 << rng.randrange(8)
            case 2:
                del made[where:]
            case 3:
                made[where : where + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
            case 4:
                made[where : where + 4] = (rng.choice(NUMBERS) % 2**32).to_bytes(4, "little")
            case 5:
                del made[where : where + rng.randint(1, 40)]
            case 6:
                start = rng.randrange(len(made)) if made else 0
                made[where:where] = made[start : start + rng.randint(1, 60)]
            case _:
                made[where:where] = rng.choice(WORDS)
    return bytes(made)


ODD: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, float("inf"), float("nan"), "", "x", [],
    [1], [None], {}, {"a": 1}, "LlamaForCausalLM", "MixtralForCausalLM", "Gemma3ForCausalLM", "full_attention",
)  # fmt: skip
MORE_KEYS = ("head_dim", "rope_theta", "rope_scaling", "sliding_window", "layer_types", "num_experts", "text_config",
             "quantization_config", "partial_rotary_factor", "use_sliding_window", "num_experts_per_tok")  # fmt: skip


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """Return sound JSON with odd values in one to three places."""
    root = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        place = root
        inner = [value for value in place.values() if isinstance(value, dict)]
        if inner and rng.random() < 0.4:
            place = rng.choice(inner)
        key = rng.choice([*place, *MORE_KEYS])
        value = rng.choice([*ODD, *place.values(), *MORE_KEYS])
        place[key] = {key: value} if rng.random() < 0.1 else [value] if rng.random() < 0.2 else value
        if rng.random() < 0.1:
            del place[key]
    return json.dumps(root).encode()


def open_gguf(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("*.gguf"))))
    found = check(path)
    with GgufFile(path) as file:
        if found:
            raise SystemExit(f"check found {found}, and yet it opens")
        for name in file.tensors:
            file.read_bytes(name)


def open_safetensors(folder: Path) -> None:
    with SafetensorsFile(folder / "model.safetensors") as file:
        for name in file.tensors:
            file.read(name)


def open_shards(folder: Path) -> None:
    paths, index, _ = weight_files(folder)
    checkpoint = Checkpoint(paths, index)
    for name in checkpoint.tensors:
        checkpoint.read(name)
    checkpoint.close()


def open_model(folder: Path) -> None:
    for tensor in load(folder).tensors:
        tensor.read(0, min(tensor.rows, 3))


OPENERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "gguf": (open_gguf, "*.gguf"),
    "safetensors": (open_safetensors, "model.safetensors"),
    "shards": (open_shards, "*.json"),
    "torch": (open_shards, "pytorch_model.bin"),
    "model": (open_model, "config.json"),
}


def main() -> None:
    folder, kind, count, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    opener, pattern = OPENERS[kind]
    opener(folder)  # the sample itself is sound, and everything is imported
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    targets = {path: path.read_bytes() for path in sorted(folder.glob(pattern))}
    rng = random.Random(seed)
    opened = refused = 0
    longest = 0.0
    for _ in range(count):
        path = rng.choice(list(targets))
        mutate = mutated_json if path.suffix == ".json" and rng.random() < 0.8 else mutated
        path.write_bytes(mutate(targets[path], rng))
        start = time.process_time()
        try:
            opener(folder)
            opened += 1
        except TersorError:
            refused += 1
        longest = max(longest, time.process_time() - start)
        path.write_bytes(targets[path])
    print(json.dumps({"opened": opened, "refused": refused, "longest_s": longest}))  # noqa: T201


if __name__ == "__main__":
    main()
