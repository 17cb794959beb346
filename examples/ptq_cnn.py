"""A trained convolutional net becomes int8 without training: smaller, faster, and its cost measured.

    python examples/ptq_cnn.py [--cifar FOLDER] [--out net-int8.onnx]

Trains a small net on scikit-learn's digits (half a minute), or takes the trained ResNet-20 and the CIFAR-10 images of a
folder, and calls tersor.quantize. Needs: pip install 'tersor[torch,onnx]' scikit-learn
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tersor
from digits import batches, load, train


def main() -> None:
    """Quantize, and print what it cost and gained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the ONNX file and its Card go")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    x, y, test_x, test_y = load()
    net = train(x, y, epochs=options.epochs)

    small = tersor.quantize(net, "int8", calibration=batches(x[:512], y[:512]), data=batches(test_x, test_y))

    with tempfile.TemporaryDirectory() as folder:
        card = small.save(options.out or Path(folder) / "digits-int8.onnx")
    quality, speed = card.evaluations[0], card.benchmarks[0]
    print(f"{'':20}{'float':>10}{'int8':>10}")
    print(f"{'KiB':20}{card.source_bytes / 1024:10.1f}{card.nbytes / 1024:10.1f}")
    for name in ("top1_accuracy", "top5_accuracy"):
        before, after = quality.metric(f"reference_{name}"), quality.metric(name)
        if before is not None and after is not None:
            print(f"{name.replace('_', ' ') + ', %':20}{100 * before.value:10.2f}{100 * after.value:10.2f}")
    noise, latency = quality.metric("output_sqnr"), speed.metric("latency_p50_ms")
    if latency is not None:
        print(f"{'ms, batch of one':20}{latency.value / speed.ratios[0].value:10.3f}{latency.value:10.3f}")
    print(f"{'SQNR of output, dB':20}{'':10}{noise.value if noise else float('nan'):10.1f}")
    worst = sorted((row for row in card.layers if row.sqnr_db is not None), key=lambda row: row.sqnr_db or 0.0)[:5]
    print("noisiest operators: " + ", ".join(f"{row.name} {row.sqnr_db:.1f} dB" for row in worst))


if __name__ == "__main__":
    main()
