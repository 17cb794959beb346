"""Weights of 4 and 3 bits: what rounding after training loses, and what training on integers gets back.

    python examples/qat_cnn.py [--epochs 60]

Trains a small net on scikit-learn's digits, then quantizes it twice at each width: PTQ, and QAT, in which the float net
teaches the one on integers. Activations have 8 bits. Needs: pip install 'tersor[torch,onnx]' scikit-learn
"""

from __future__ import annotations

import argparse

import tersor
from digits import DigitNet, batches, load, train
from tersor.pipeline.nets.quantizing import QuantizedResult
from tersor.pipeline.nets.training import Training


def main() -> None:
    """Quantize at each width by both ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60, help="of QAT")
    options = parser.parse_args()
    x, y, test_x, test_y = load()
    net = train(DigitNet(12), x, y)
    calibration, test = batches(x[:512], y[:512]), batches(test_x, test_y)

    print(
        f"{'weights':10}{'float, %':>10}{'PTQ, %':>10}{'QAT, %':>10}{'PTQ, dB':>10}{'QAT, dB':>10}{'ms':>8}{'float':>8}"
    )
    for name in ("int8", "int4", "int3"):
        ptq = tersor.quantize(net, name, calibration=calibration, data=test)
        training = Training(batches(x, y, seed=1), epochs=options.epochs)
        qat = tersor.quantize(net, name, calibration=calibration, data=test, training=training)
        before, rounded, noise = figures(ptq)
        _, taught, less = figures(qat)
        speed = qat.card.benchmarks[0]
        latency = speed.metrics[0].value
        times = f"{latency:8.3f}{latency / speed.ratios[0].value:8.3f}"
        print(f"{name:10}{before:10.2f}{rounded:10.2f}{taught:10.2f}{noise:10.1f}{less:10.1f}{times}")


def figures(result: QuantizedResult) -> tuple[float, float, float]:
    """Return the accuracy of the float net and of the one on integers in percent, and the SQNR of its answers."""
    quality = result.card.evaluations[0]
    found = [quality.metric(name) for name in ("reference_top1_accuracy", "top1_accuracy", "output_sqnr")]
    values = [metric.value if metric is not None else float("nan") for metric in found]
    return 100 * values[0], 100 * values[1], values[2]


if __name__ == "__main__":
    main()
