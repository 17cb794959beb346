"""How far is llama.cpp's generation from the bound that `tersor estimate` gives for this machine?

    python benchmarks/estimate_decode.py [--formats f16 q8_0 …] [--rounds 7] [--threads 2] [--json]

Makes random Llamas of two sizes (their weights are several times the last cache), quantizes them, and measures each
between two measurements of the roofs, of which the higher counts: other work only ever lowers them. Speeds are of the
time on the clock (wall) and, with one thread, of the processor time that the engine took (cpu): on a machine that is
busy with other things only the latter says something of the engine. The bound is for the mean length of the text. Also:
memory of the engine's process above that of an empty one, beside the estimate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from tersor import reference_model
from tersor.engines.llama_cpp import LlamaCpp, empty_engine
from tersor.evaluation.estimates.limits import machine_here
from tersor.evaluation.speed.workload import Workload
from tersor.models import load
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.provenance import machine
from tersor.pipeline.steps.scene import highest
from tersor.pipeline.targets.estimate import estimate
from tersor.targets.memory import footprint
from tersor.targets.processor import busy_cores, processor
from tersor.targets.roofs import measure_roofs

SIZES = {"160M": (1024, 2816, 12), "400M": (1536, 4096, 14)}
"""Name → hidden, inner, layers."""
PROMPT, STEPS = 128, 48
SPEEDS = ("decode_tokens_per_s", "prefill_tokens_per_s")


@dataclass(frozen=True)
class Speed:
    """Tokens a second by the clock, and by the processor time of the engine."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One model in one format: speeds beside their bounds, bytes beside the estimate."""

    model: str
    format: str
    weight_bytes: float
    bound: float
    generation: Speed
    prompt_bound: float
    prompt: Speed
    needed_bytes: float
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


def run(path: Path, threads: int, rounds: int) -> tuple[Speed, Speed, int]:
    """Return the speed of generation and of the prompt, and what the model takes in memory."""
    work = Workload(PROMPT, STEPS, (), rounds, threads=threads)
    empty = empty_engine(threads=threads)
    bare = resident(empty.pid)
    empty.close()
    made: list[tuple[float, float]] = []
    read: list[tuple[float, float]] = []
    with LlamaCpp(path, context=0, threads=threads) as engine:
        assert engine.pid is not None, "it runs"
        engine.timed("time_open", sequences=1, context=work.context, threads=threads)
        for index in range(rounds + 1):
            clock = [seconds_of(engine.pid)]
            prompt = engine.timed("time_prompt", sequences=1, prompts=work.prompts(1, PROMPT, engine.vocabulary_size))
            clock.append(seconds_of(engine.pid))
            steps = engine.timed("time_generation", sequences=1, steps=STEPS)["step_ns"]
            clock.append(seconds_of(engine.pid))
            if index:
                read.append((prompt["evaluated_ns"] / 1e9, clock[1] - clock[0]))
                made.append((sum(steps) / 1e9, clock[2] - clock[1]))
        taken = resident(engine.pid) - bare
    return speed(STEPS, made), speed(PROMPT, read), taken


def speed(tokens: int, rounds: list[tuple[float, float]]) -> Speed:
    """Return the median over rounds of the clock, the mean of processor time, whose ticks are coarse."""
    wall = sorted(seconds for seconds, _ in rounds)[len(rounds) // 2]
    return Speed(tokens / wall, tokens * len(rounds) / max(sum(seconds for _, seconds in rounds), 1e-9))


def measured(size: str, kind: str, folder: Path, threads: int, rounds: int) -> Row:
    """Quantize, estimate, run."""
    path = folder / f"{size}-{kind}.gguf"
    quantize(load(folder / size), kind, path, measure=False)
    before = measure_roofs(threads)
    generation, prompt, memory = run(path, threads, rounds)
    roofs = highest(before, measure_roofs(threads))
    here = machine_here(processor().name, roofs, None)
    found = estimate(path, target=here, context=PROMPT + STEPS // 2, prompt=PROMPT)
    path.unlink()
    amounts = {name: found.amount(name) or 0.0 for name in (*("weights_bytes", "needed_bytes"), *SPEEDS)}
    return Row(
        size,
        kind,
        amounts["weights_bytes"],
        amounts["decode_tokens_per_s"],
        generation,
        amounts["prefill_tokens_per_s"],
        prompt,
        amounts["needed_bytes"],
        float(memory),
    )


def main(arguments: list[str]) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["f16", "q8_0", "q4_0", "q4_k_m"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            build(size, folder)
            for kind in given.formats:
                rows.append(measured(size, kind, folder, given.threads, given.rounds))
                print(rows[-1], file=sys.stderr, flush=True)
    facts = {"machine": machine(), "threads": given.threads, "load_average": busy_cores()}
    if given.json:
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{facts['machine']}, {given.threads} threads, load average {facts['load_average']}\n")
    print(
        "| model | format | weights, MB | bound, tokens/s | wall | cpu | of the bound (cpu) | prompt (cpu) | memory |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        made = row.generation
        print(
            f"| {row.model} | {row.format} | {row.weight_bytes / 1e6:.0f} | {row.bound:.1f} | {made.wall:.1f} | "
            f"{made.cpu:.1f} | {made.cpu / row.bound:.0%} | {row.prompt.cpu / row.prompt_bound:.0%} | "
            f"{row.memory_bytes / row.needed_bytes:.2f}× |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
