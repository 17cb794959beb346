"""Memory and time of `tersor evaluate` on a vocabulary of 32,000: what does comparing add to the two forward passes?

Makes a random Llama in a temporary folder and an 8-bit GGUF of it, and prints, each measured in a child process,
- time of both forward passes alone, side by side with one thread each as `evaluate` runs them: transformers computes
  logits and drops them, llama.cpp decodes inside of its own process and hands nothing out,
- time of `evaluate` on the same windows without loading, and the ratio; best of the rounds, which run in turn,
- peak memory of both processes of `evaluate` above what they hold once both models are loaded.

    python benchmarks/evaluation.py [--tokens 8192] [--rounds 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import transformers

from tersor import reference_model
from tersor.engines.llama.api import bound
from tersor.engines.llama.session import Session
from tersor.engines.llama_cpp import LlamaCpp, _library
from tersor.engines.transformers_lm import TransformersLm
from tersor.evaluation.language.streams import rows_at_once
from tersor.models import load
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.quantize import quantize

VOCABULARY, HIDDEN, INNER, LAYERS, CONTEXT = 32_000, 384, 1024, 6, 512
FIRST = CONTEXT // 2
RATIO_LIMIT, MEMORY_LIMIT_MIB = 1.2, 1024


def make_models(folder: Path, tokens: int) -> None:
    """Write source/, q8_0.gguf and text.txt of at least `tokens` tokens."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HIDDEN // 64,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_model.PATH / name, folder / "source" / name)
    quantize(load(folder / "source"), "q8_0", folder / "q8_0.gguf")
    held_out = (reference_model.PATH / "held_out.txt").read_text(encoding="utf-8")
    (folder / "text.txt").write_text(held_out * (1 + 6 * tokens // len(held_out)), encoding="utf-8")


def _windows(count: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(300, 2000, CONTEXT - 1).tolist() for _ in range(count)]


def child_source(folder: Path, count: int) -> dict[str, float]:
    """Both halves of every window through transformers; the logits of the second half are dropped."""
    engine = TransformersLm(folder / "source", name="source", weights=1, threads=1)
    rows, windows = rows_at_once(VOCABULARY), _windows(count)
    next(engine.slices(windows[0], start=FIRST - 1, rows=rows))
    began, before = time.perf_counter(), _processor_s()
    for ids in windows:
        for _ in engine.slices(ids, start=FIRST, rows=rows):
            pass
    return {"seconds": time.perf_counter() - began, "processor_s": _processor_s() - before}


def child_artefact(folder: Path, count: int) -> dict[str, float]:
    """The same in llama.cpp, called inside of this process."""
    options = {"context": CONTEXT, "batch_bytes": 64 << 20, "threads": 1, "vocabulary_only": False}
    session, windows = Session(bound(str(_library())), str(folder / "q8_0.gguf"), options), _windows(count)
    session.clear()
    session.decode(windows[0], 0, every=True, skip=FIRST)
    began, before = time.perf_counter(), _processor_s()
    for ids in windows:
        session.clear()
        session.decode(ids, 0, every=True, skip=FIRST)
    return {"seconds": time.perf_counter() - began, "processor_s": _processor_s() - before}


def child_loaded(folder: Path, _count: int) -> dict[str, float]:
    """Load both models as `evaluate` does, and nothing else."""
    began = time.perf_counter()
    TransformersLm(folder / "source", name="source", weights=1, threads=1)
    with LlamaCpp(folder / "q8_0.gguf", context=CONTEXT, threads=1):
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "processor_s": _processor_s(), "peak_mib": _peak_mib()}


def child_evaluate(folder: Path, count: int) -> dict[str, float]:
    """Evaluate as a user would."""
    began = time.perf_counter()
    found = evaluate(
        folder / "q8_0.gguf",
        against=folder / "source",
        data=folder / "text.txt",
        context=CONTEXT,
        stride=0,
        windows=count,
        threads=1,
        save=False,
    )
    seconds, kl = time.perf_counter() - began, found.metric("kl_mean")
    return {
        "seconds": seconds,
        "processor_s": _processor_s(),
        "peak_mib": _peak_mib(),
        "kl_mean": kl.value if kl is not None else -1.0,
    }


def _processor_s() -> float:
    """Processor time of this process and of its children that have ended: a busy machine does not stretch it."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mib() -> float:
    """Largest resident memory of this process and of its one child, which has ended."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


CHILDREN = {
    "source": child_source,
    "artefact": child_artefact,
    "loaded": child_loaded,
    "evaluate": child_evaluate,
}


def in_child(part: str, folder: Path, count: int) -> dict[str, float]:
    """Run one of CHILDREN in a process of its own."""
    command = [sys.executable, __file__, "--child", part, str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Run everything in turn and return the figures."""
    loaded, alone, whole, processor = in_child("loaded", folder, count), [], [], float("inf")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            both = list(pool.map(lambda part: in_child(part, folder, count), ("source", "artefact")))
            alone.append(max(one["seconds"] for one in both))
            processor = min(processor, sum(one["processor_s"] for one in both))
            whole.append(in_child("evaluate", folder, count))
    comparing = min(one["seconds"] for one in whole) - loaded["seconds"]
    return {
        "tokens": count * CONTEXT,
        "vocabulary": VOCABULARY,
        "forward_passes_s": min(alone),
        "evaluate_s": min(one["seconds"] for one in whole),
        "evaluate_without_loading_s": comparing,
        "ratio": comparing / min(alone),
        "ratio_of_processor_time": (min(o["processor_s"] for o in whole) - loaded["processor_s"]) / processor,
        "loaded_mib": loaded["peak_mib"],
        "above_models_mib": max(one["peak_mib"] for one in whole) - loaded["peak_mib"],
        "kl_mean": whole[0]["kl_mean"],
    }


def main() -> None:
    """Read the options, measure, print."""
    if sys.argv[1:2] == ["--child"]:
        part, folder, count = sys.argv[2:5]
        sys.stdout.write(json.dumps(CHILDREN[part](Path(folder), int(count))) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tersor-benchmark-") as folder:
        make_models(Path(folder), options.tokens)
        found = compare(Path(folder), max(2, options.tokens // CONTEXT), options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print("\n".join(f"{name:28}{value:12.4g}" for name, value in found.items()))
    is_met = found["ratio"] <= RATIO_LIMIT and found["above_models_mib"] <= MEMORY_LIMIT_MIB
    print(f"goal (ratio ≤ {RATIO_LIMIT}, above the models ≤ {MEMORY_LIMIT_MIB} MiB): {'met' if is_met else 'missed'}")


if __name__ == "__main__":
    main()
