"""What smoothing, corrected biases and evening out channels are worth: SQNR of nets on int8 with and without each.

    python benchmarks/net_cures.py [--data FOLDER] [--format int8] [--json]

SQNR compares the answers of the float net and of the net on integers, both in ONNX Runtime, on inputs that calibration
has not seen, in dB.

  digits-96, digits-12   the examples' DigitNet of so many channels, trained here on scikit-learn's digits
  digits-mobilenet       MobileNetV2 × 0.25, trained here on the same
  cifar10-resnet20       the trained net and images of --data (shared with whoever has that folder), else left out
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import digits
import nets
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe
from tersor.graph.sessions import Session
from tersor.pipeline.nets.quantizing import NetHow, quantize_network

USUAL = Recipe()
RECIPES = {
    "usual": USUAL,
    "equalize too": replace(USUAL, equalize=True),
    "without smooth": replace(USUAL, smooth=False),
    "without biases": replace(USUAL, biases=False),
    "neither": replace(USUAL, smooth=False, biases=False),
}
CALIBRATION, TESTED, BATCH = 256, 400, 64


@dataclass(frozen=True)
class Subject:
    """A net with inputs to calibrate with and others to test with."""

    name: str
    net: nn.Module
    calibration: Tensor
    tested: Tensor


def subjects(data: Path | None) -> Iterator[Subject]:
    """Yield the nets, trained where they are not yet."""
    x, y, tested, _ = digits.load()
    for channels in (96, 12):
        net = digits.train(x, y, channels=channels)
        yield Subject(f"digits-{channels}", net, x[:CALIBRATION], tested[:TESTED])
    x, y, tested, _ = digits.load(side=32)
    mobile = nets.trained(nets.MobileNetV2(10, width=0.25, first=1, channels=1), x, y, epochs=12)
    yield Subject("digits-mobilenet", mobile, x[:CALIBRATION], tested[:TESTED])
    if data is not None:
        with np.load(data / "cifar10.npz") as found:
            images = [nets.normalised(found[name]) for name in ("calibration_x", "test_x")]
        yield Subject("cifar10-resnet20", nets.cifar_resnet20(data), images[0][:CALIBRATION], images[1])


def decibels(float_net: Net, integers: Net, inputs: Tensor) -> float:
    """Return the signal to quantization noise ratio of the answers, dB."""
    feeds = {str(float_net.inputs[0].name): inputs.numpy()}
    wanted, made = (Session(net, threads=1).first(feeds).astype(np.float64) for net in (float_net, integers))
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - made).sum()))


def measured(subject: Subject, name: str) -> dict[str, float]:
    """Return the SQNR of every recipe with weights in a format."""
    found = {}
    bits = int(name.removeprefix("int"))
    for title, recipe in RECIPES.items():
        batches = list(torch.split(subject.calibration, BATCH))
        how = NetHow(batches, recipe=replace(recipe, bits=bits), bench=False, threads=1)
        quantized = quantize_network(subject.net, name, how).quantized
        found[title] = decibels(quantized.source, quantized.net, subject.tested)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with resnet20.safetensors and cifar10.npz")
    parser.add_argument("--format", default="int8", help="of weights")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = {subject.name: measured(subject, chosen.format) for subject in subjects(chosen.data)}
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"output SQNR, weights {chosen.format}, dB", title_justify="left")
    for heading in ("net", *RECIPES):
        table.add_column(heading, justify="left" if heading == "net" else "right")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.1f}" for value in row.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
