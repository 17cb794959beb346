"""How far is llama.cpp's generation from the bound that `tersor estimate` gives for this machine?

    python benchmarks/estimate_decode.py [--formats f16 q8_0 …] [--rounds 7] [--json]

Makes random Llamas of two sizes, their weights several times the last cache, and runs each in several formats. One
thread, and everything by processor time instead of the clock: roofs and engine alike, in turn, so that a machine that
is busy with other things tells the same as a quiet one. The bound is for the mean length of the text. Also: memory of
the engine's process above that of an empty one, beside what the estimate says it is at least, and at most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tersor import reference_model
from tersor.engines.llama_cpp import LlamaCpp, empty_engine
from tersor.evaluation.estimates.limits import machine_here
from tersor.evaluation.speed.workload import Workload
from tersor.kernels import codec
from tersor.models import load
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.provenance import machine
from tersor.pipeline.targets.estimate import estimate
from tersor.targets.memory import footprint
from tersor.targets.processor import busy_cores, processor
from tersor.targets.roofs import Roofs

SIZES = {"160M": (1024, 2816, 12), "400M": (1536, 4096, 14)}
"""Name → hidden, inner, layers."""
PROMPT, STEPS = 128, 48
LANES = {"avx512": (16, 64), "avx2": (8, 0), "neon": (4, 16), "portable": (8, 0)}
"""Instruction set → multiply-adds of an instruction of the loops in kernels/native/roofs.h: float32, int8."""


@dataclass(frozen=True)
class Row:
    """One model in one format: tokens per second of processor time beside their bounds, bytes beside the estimate."""

    model: str
    format: str
    weight_bytes: float
    read_bytes_per_s: float
    bound: float
    generation: float
    prompt_bound: float
    prompt: float
    needed_bytes: float
    repacked_bytes: float
    resident_bytes: float
    memory_bytes: float


def build(size: str, folder: Path) -> Path:
    """Write a random Llama with the tokenizer of the embedded model."""
    hidden, inner, layers = SIZES[size]
    source = reference_model.PATH
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        dtype=torch.float16,
    )
    place = folder / size
    transformers.LlamaForCausalLM(config).half().save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, place / name)
    return place


def seconds_of(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int | None) -> int:
    """Return bytes in memory of a process."""
    found = None if pid is None else footprint(pid)
    return 0 if found is None else found.resident


def roofs_by_processor_time() -> Roofs:
    """Return the roofs of one thread: what more passes cost, so that setting up does not count."""
    native: Any = codec.native()
    size = 256 << 20

    def slope(work: Callable[[int], object], few: int, many: int) -> float:
        taken = []
        for passes in (few, many):
            began = resource.getrusage(resource.RUSAGE_SELF).ru_utime  # without what the system does for new pages
            work(passes)
            taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - began)
        return (taken[1] - taken[0]) / (many - few)

    steps = 1 << 20
    per_step = {kind: native.multiply_rate(kind, steps, 1, 3) for kind in (False, True)}
    reading = slope(lambda passes: native.read_rate(size, 1, passes), 2, 42)
    rates = {}
    for kind, rate in per_step.items():
        alone = slope(lambda passes, kind=kind: native.multiply_rate(kind, steps, 1, passes), 2, 50)  # type: ignore[misc]
        rates[kind] = rate and 2 * 12 * LANES[native.isa()][kind] * steps / alone
    return Roofs(1, size / reading, rates[False], rates[True] or None, size, "native, by processor time", 0.0)


def run(path: Path, rounds: int) -> tuple[float, float, int, Roofs]:
    """Return the speed of generation and of the prompt, what the model takes in memory, and the roofs meanwhile."""
    work = Workload(PROMPT, STEPS, (), rounds, threads=1)
    empty = empty_engine(threads=1)
    bare = resident(empty.pid)
    empty.close()
    made = read = 0.0
    found = []
    with LlamaCpp(path, context=0, threads=1) as engine:
        assert engine.pid is not None, "it runs"
        engine.timed("time_open", sequences=1, context=work.context, threads=1)
        for index in range(rounds + 1):
            clock = [seconds_of(engine.pid)]
            engine.timed("time_prompt", sequences=1, prompts=work.prompts(1, PROMPT, engine.vocabulary_size))
            clock.append(seconds_of(engine.pid))
            engine.timed("time_generation", sequences=1, steps=STEPS)
            clock.append(seconds_of(engine.pid))
            if index:
                read, made = read + clock[1] - clock[0], made + clock[2] - clock[1]
            found.append(roofs_by_processor_time())
        taken = resident(engine.pid) - bare
    middle = sorted(found, key=lambda one: one.read_bytes_per_s)[len(found) // 2]
    return STEPS * rounds / made, PROMPT * rounds / read, taken, middle


def measured(size: str, kind: str, folder: Path, rounds: int) -> Row:
    """Quantize, estimate, run."""
    path = folder / f"{size}-{kind}.gguf"
    quantize(load(folder / size), kind, path, measure=False)
    generation, prompt, memory, roofs = run(path, rounds)
    here = machine_here(processor().name, roofs, None, processor().flags)
    found = estimate(path, target=here, context=PROMPT + STEPS // 2, prompt=PROMPT)
    path.unlink()
    bounds = {name: found.amount(name) or 0.0 for name in ("decode_tokens_per_s", "prefill_tokens_per_s")}
    names = ("weights_bytes", "needed_bytes", "repacked_bytes", "resident_bytes")
    sizes = {name: found.amount(name) or 0.0 for name in names}
    return Row(
        size,
        kind,
        sizes["weights_bytes"],
        roofs.read_bytes_per_s,
        bounds["decode_tokens_per_s"],
        generation,
        bounds["prefill_tokens_per_s"],
        prompt,
        sizes["needed_bytes"],
        sizes["repacked_bytes"],
        sizes["resident_bytes"],
        float(memory),
    )


def main(arguments: list[str]) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["f16", "q8_0", "q4_0", "q4_k_m"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            build(size, folder)
            for kind in given.formats:
                rows.append(measured(size, kind, folder, given.rounds))
                print(rows[-1], file=sys.stderr, flush=True)
    facts = {"machine": machine(), "load_average": busy_cores()}
    if given.json:
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{facts['machine']}, one thread, load average {facts['load_average']}\n")
    print(
        "| model | format | weights, MB | read, GB/s | bound, tokens/s | llama.cpp | share | prompt | memory, MB "
        "| at least | at most |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.model} | {row.format} | {row.weight_bytes / 1e6:.0f} | {row.read_bytes_per_s / 1e9:.1f} | "
            f"{row.bound:.1f} | {row.generation:.1f} | {row.generation / row.bound:.0%} | "
            f"{row.prompt / row.prompt_bound:.0%} | {row.memory_bytes / 1e6:.0f} | {row.needed_bytes / 1e6:.0f} | "
            f"{row.resident_bytes / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
