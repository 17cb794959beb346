"""Measure what every file type costs the embedded reference model, for the tables of README and docs.

What: quantizes the reference model to every file type, runs each file in llama.cpp over the first windows of the
held-out text, and writes size, error of the weights, perplexity, KL divergence and agreement with the float32 file to
docs/reference/reference-model.json. `make docs` turns that into tables.

How: needs the native kernels and the extra "llama"; a few minutes on one core:

    python tools/measure_reference_model.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tersor import reference_model
from tersor.containers.mixture_rules import FILE_TYPES
from tersor.core.arrays import Float32
from tersor.engines.llama_cpp import LlamaCpp
from tersor.kernels.codec import backend, native
from tersor.models import load
from tersor.pipeline.quantize import quantize

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "reference-model.json"
CONTEXT, WINDOWS = 256, 80
MIXED = [name for name, kind in FILE_TYPES.items() if not name.endswith("_pure") and not kind.wants_importance]


def log_probabilities(path: Path, windows: list[list[int]]) -> Iterator[Float32]:
    """Yield natural-log probabilities, [len(window) - 1, vocabulary], of what follows each token of each window."""
    with LlamaCpp(path, context=CONTEXT) as engine:
        for window in windows:
            logits = engine.logits(window)[:-1]
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            yield logits


def windows_of(path: Path, count: int) -> list[list[int]]:
    """The first `count` windows of the held-out text, as eval.json of the reference model cuts them."""
    text = (reference_model.PATH / "held_out.txt").read_text(encoding="utf-8")
    with LlamaCpp(path, vocabulary_only=True) as engine:
        ids = engine.tokenize(text)
    return [ids[start : start + CONTEXT] for start in range(0, count * CONTEXT, CONTEXT)]


def compare(path: Path, windows: list[list[int]], exact: list[Float32]) -> dict[str, float]:
    """Perplexity of the file, mean KL divergence (nats) from `exact`, and share of equal most likely tokens."""
    loss = divergence = agreed = 0.0
    count = sum(len(window) - 1 for window in windows)
    for window, wanted, found in zip(windows, exact, log_probabilities(path, windows), strict=True):
        loss -= float(found[np.arange(len(window) - 1), window[1:]].sum(dtype=np.float64))
        divergence += float((np.exp(wanted) * (wanted - found)).sum(dtype=np.float64))
        agreed += float((wanted.argmax(axis=1) == found.argmax(axis=1)).sum())
    return {
        "perplexity": round(float(np.exp(loss / count)), 3),
        "divergence": round(max(divergence / count, 0.0), 6),
        "top1": round(agreed / count, 4),
    }


def measure(folder: Path, names: list[str], count: int) -> list[dict[str, object]]:
    """One row a file type: both searches' error of the weights, and what the default search's file answers."""
    model = load(reference_model.PATH)
    quantize(model, "f32", folder / "f32.gguf")
    windows = windows_of(folder / "f32.gguf", count)
    exact = list(log_probabilities(folder / "f32.gguf", windows))
    rows: list[dict[str, object]] = []
    for name in names:
        path = folder / f"{name}.gguf"
        plain = quantize(model, name, path, search="ggml")
        card = quantize(model, name, path, search="best")
        row = {"file_type": name, "bytes": card.nbytes, "bits_per_weight": round(card.plan.bits_per_weight, 4)}
        errors = {"error": round(card.mean_error or 0.0, 7), "error_ggml": round(plain.mean_error or 0.0, 7)}
        rows.append({**row, **errors, **compare(path, windows, exact)})
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="windows of 256 tokens to score")
    parser.add_argument("--types", nargs="+", default=MIXED, help="file types to measure")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    chosen = parser.parse_args()
    if native() is None:
        sys.exit("the native kernels are missing, and the reference is too slow for this: pip install .")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), chosen.types, chosen.windows)
    document = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": "python tools/measure_reference_model.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, kernels: {backend()}",
        "windows": chosen.windows,
        "context": CONTEXT,
        "rows": rows,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
