"""How far is llama.cpp's generation from the bound that `tersor estimate` gives for this machine?

    python benchmarks/estimate_decode.py [--formats f16 q8_0 …] [--rounds 7] [--threads 2] [--json]

Makes random Llamas of two sizes (their weights are several times the last cache), quantizes them, and measures each in
rounds of `tersor bench` between two measurements of the roofs, of which the higher counts: other work only ever lowers
them. The bound is for the mean length of the text. Also: memory of the engine's process beside the estimate.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from tersor import reference_model
from tersor.evaluation.estimates.limits import machine_here
from tersor.evaluation.speed.interleave import Side, race
from tersor.evaluation.speed.runners import RUNNERS
from tersor.evaluation.speed.workload import Workload
from tersor.models import load
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.provenance import machine
from tersor.pipeline.steps.scene import highest
from tersor.pipeline.targets.estimate import estimate
from tersor.targets.processor import busy_cores, processor
from tersor.targets.roofs import measure_roofs

SIZES = {"160M": (1024, 2816, 12), "400M": (1536, 4096, 14)}
"""Name → hidden, inner, layers."""
PROMPT, STEPS = 128, 48


@dataclass(frozen=True)
class Row:
    """One model in one format: tokens a second, and bytes."""

    model: str
    format: str
    weight_bytes: float
    bound: float
    measured: float
    prefill_bound: float
    prefill: float
    needed_bytes: float
    memory_bytes: float | None

    @property
    def share(self) -> float:
        """Measured over the bound."""
        return self.measured / self.bound


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


def measured(size: str, kind: str, folder: Path, threads: int, rounds: int) -> Row:
    """Quantize, estimate, run."""
    path = folder / f"{size}-{kind}.gguf"
    quantize(load(folder / size), kind, path, measure=False)
    before = measure_roofs(threads)
    side = Side(path, RUNNERS["llama.cpp"])
    race([side], Workload(PROMPT, STEPS, (), rounds, threads=threads))
    roofs = highest(before, measure_roofs(threads))
    here = machine_here(processor().name, roofs, None)
    found = estimate(path, target=here, context=PROMPT + STEPS // 2, prompt=PROMPT)
    generation = sorted(len(reading.steps) / sum(reading.steps) for reading in side.readings)
    prompts = sorted(PROMPT / reading.evaluated for reading in side.readings)
    middle = len(generation) // 2
    path.unlink()
    return Row(
        size,
        kind,
        found.amount("weights_bytes") or 0.0,
        found.amount("decode_tokens_per_s") or 0.0,
        generation[middle],
        found.amount("prefill_tokens_per_s") or 0.0,
        prompts[middle],
        found.amount("needed_bytes") or 0.0,
        side.memory.steady,
    )


def main(arguments: list[str]) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["f16", "q8_0", "q4_0", "q4_k_m"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=processor().physical)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            build(size, folder)
            for kind in given.formats:
                rows.append(measured(size, kind, folder, given.threads, given.rounds))
                print(rows[-1], f"{rows[-1].share:.0%}", file=sys.stderr, flush=True)
    facts = {"machine": machine(), "threads": given.threads, "load_average": busy_cores()}
    if given.json:
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{facts['machine']}, {given.threads} threads, load average {facts['load_average']}\n")
    print("| model | format | weights, MB | bound, tokens/s | llama.cpp | share | prompt: share | memory / estimate |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        memory = "–" if row.memory_bytes is None else f"{row.memory_bytes / row.needed_bytes:.2f}"
        print(
            f"| {row.model} | {row.format} | {row.weight_bytes / 1e6:.0f} | {row.bound:.0f} | {row.measured:.0f} | "
            f"{row.share:.0%} | {row.prefill / row.prefill_bound:.0%} | {memory} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
