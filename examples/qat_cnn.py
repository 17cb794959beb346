"""Weights of 4 and 3 bits: what rounding after training loses, and what training on integers gets back.

    python examples/qat_cnn.py [--epochs 60]

Trains a small net on scikit-learn's digits, then quantizes it three times at each width: plain PTQ (weights rounded to
the nearest, ranges of all that was seen, nothing corrected), tersor's PTQ, and QAT, in which the float net teaches the
one on integers. Activations have 8 bits. "closed" is the share of what PTQ loses that QAT gets back: of the plain one's
loss, and of ours. Needs: pip install 'tersor[torch,onnx]' scikit-learn
"""

from __future__ import annotations

import argparse

import tersor
from digits import batches, load, train
from tersor.graph.ptq import Recipe
from tersor.pipeline.nets.quantizing import QuantizedResult
from tersor.pipeline.nets.training import Training

PLAIN = Recipe(ranges="minmax", weights="rtn", equalize=False, smooth=False, biases=False)
LEAST = 0.5


def main() -> None:
    """Quantize at each width by both ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60, help="of QAT")
    options = parser.parse_args()
    x, y, test_x, test_y = load()
    net = train(x, y, channels=12, epochs=30)
    calibration, test = batches(x[:512], y[:512]), batches(test_x, test_y)

    heads = ("float, %", "plain, %", "PTQ, %", "QAT, %", "closed", "", "PTQ, dB", "QAT, dB", "ms", "float")
    print("weights   " + "".join(f"{head:>9}" for head in heads))
    for name in ("int8", "int4", "int3"):
        plain = tersor.quantize(net, name, calibration=calibration, data=test, recipe=PLAIN)
        ptq = tersor.quantize(net, name, calibration=calibration, data=test)
        training = Training(batches(x, y, seed=1), epochs=options.epochs)
        qat = tersor.quantize(net, name, calibration=calibration, data=test, training=training)
        before, rounded, noise = figures(ptq)
        _, taught, less = figures(qat)
        worst = figures(plain)[1]
        speed = qat.card.benchmarks[0]
        latency = speed.metrics[0].value
        shares = closed(before, worst, taught) + closed(before, rounded, taught)
        times = f"{latency:9.3f}{latency / speed.ratios[0].value:9.3f}"
        print(f"{name:10}{before:9.2f}{worst:9.2f}{rounded:9.2f}{taught:9.2f}{shares}{noise:9.1f}{less:9.1f}{times}")


def figures(result: QuantizedResult) -> tuple[float, float, float]:
    """Return the accuracy of the float net and of the one on integers in percent, and the SQNR of its answers."""
    quality = result.card.evaluations[0]
    found = [quality.metric(name) for name in ("reference_top1_accuracy", "top1_accuracy", "output_sqnr")]
    values = [metric.value if metric is not None else float("nan") for metric in found]
    return 100 * values[0], 100 * values[1], values[2]


def closed(before: float, rounded: float, taught: float) -> str:
    """Return the share of a loss that was got back, and nothing where half a point or less was lost."""
    return f"{(taught - rounded) / (before - rounded):9.0%}" if before - rounded > LEAST else " " * 9


if __name__ == "__main__":
    main()
