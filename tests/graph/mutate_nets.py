"""Mutates sound nets, opens and places them, in a process whose memory and time are limited; run by test_net.py.

    python mutate_nets.py FOLDER COUNT SEED [--run]

FOLDER holds sound nets. Prints one JSON object: how many mutants were opened, refused, and the longest time. Any
exception but a deliberate one ends the process. --run has ONNX Runtime load what was opened, too.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import resource
import sys
import time
from pathlib import Path

import onnx

from tersor.core.errors import TersorError
from tersor.graph.net import Net
from tersor.graph.placement.engines import ENGINES
from tersor.graph.placement.placing import place
from tersor.graph.sessions import Session
from tersor.graph.simplify import simplified

EXTRA_BYTES = 400 * 2**20
SECONDS = 100
NUMBERS = (0, 1, 2, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 99, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
ODD_WORDS = (
    "",
    "x",
    "y",
    "Conv",
    "Loop",
    "If",
    "QuantizeLinear",
    "BatchNormalization",
    "Gemm",
    "nobody",
    "\0",
    "ą" * 99,
)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to four faults."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(made)) if made else 0
        match rng.randrange(6):
            case 0 | 1:
                if made:
                    made[where] ^= 1 << rng.randrange(8)
            case 2:
                if rng.random() < 0.3:
                    del made[where:]
            case 3:
                number = rng.choice(NUMBERS)
                made[where : where + 10] = bytes([(number >> 7 * i) & 127 | 128 for i in range(9)]) + bytes(
                    [number >> 63]
                )
            case 4:
                del made[where : where + rng.randint(1, 40)]
            case _:
                start = rng.randrange(len(made)) if made else 0
                made[where:where] = made[start : start + rng.randint(1, 60)]
    return bytes(made)


def mutated_fields(data: bytes, rng: random.Random) -> bytes:
    """Return a net with one to three odd values in its fields, which protobuf itself reads without a word."""
    proto = onnx.ModelProto.FromString(data)
    messages = [proto]
    for message in messages:
        for field, held in message.ListFields():
            if field.message_type is not None:
                messages += [held] if hasattr(held, "ListFields") else held
    for _ in range(rng.randint(1, 3)):
        message = rng.choice(messages)
        fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
        field = rng.choice(fields if rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
        change(message, field, rng)
    return bytes(proto.SerializeToString())


def change(message: object, field: object, rng: random.Random) -> None:
    """Put something else into a field."""
    name, kind = field.name, field.cpp_type  # type: ignore[attr-defined]  # protobuf has no types here
    held = getattr(message, name)
    if hasattr(held, "append") or hasattr(held, "add"):
        match rng.randrange(4):
            case 0 if len(held):
                del held[rng.randrange(len(held))]
            case 1 if len(held):
                copy = held[rng.randrange(len(held))]
                held.extend([copy] * rng.choice((1, 1, 2, 50)))
            case 2 if len(held) > 1:
                first, second = rng.sample(range(len(held)), 2)
                kept = list(held)
                kept[first], kept[second] = kept[second], kept[first]
                del held[:]
                held.extend(kept)
            case _:
                del held[:]
        return
    if kind in (1, 2, 3, 4, 8):  # whole numbers and enumerations
        with contextlib.suppress(ValueError, OverflowError):  # what the field cannot hold
            setattr(message, name, rng.choice((*ODD_NUMBERS, *range(8))))
    elif kind in (5, 6):
        setattr(message, name, rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e-38)))
    elif kind == 9:
        word = rng.choice(ODD_WORDS)
        setattr(
            message, name, held + held if rng.random() < 0.2 else word.encode() if isinstance(held, bytes) else word
        )
    else:
        message.ClearField(name)  # type: ignore[attr-defined]


def main() -> None:
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    samples = [path.read_bytes() for path in sorted(folder.glob("*.onnx"))]

    def work(data: bytes) -> None:
        net = simplified(Net.parse(data, "mutant", folder=folder))
        for row in ENGINES.values():
            place(net, row)
        if "--run" in sys.argv:
            Session(net, threads=1)

    for sample in samples:  # all are sound, and everything is imported
        work(sample)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    rng = random.Random(seed)
    opened = refused = 0
    longest = 0.0
    odd: collections.Counter[str] = collections.Counter()
    for number in range(count):
        data = (mutated_bytes if number % 2 else mutated_fields)(rng.choice(samples), rng)
        (folder / "last").write_bytes(data)  # what ended the process, if it ends
        start = time.process_time()
        try:
            work(data)
            opened += 1
        except TersorError:
            refused += 1
        except Exception as error:
            if "--all" not in sys.argv:
                raise
            odd[f"{type(error).__name__}: {error}"[:150]] += 1
        longest = max(longest, time.process_time() - start)
    print(json.dumps({"opened": opened, "refused": refused, "longest_s": longest, "odd": odd}))  # noqa: T201


if __name__ == "__main__":
    main()
