"""A trained net in one format, searched by `--max-drop`, and planned: bytes, and accuracy on images of both halves.

    python benchmarks/net_plans.py [--data FOLDER] [--max-drop 0.5] [--threads 1]

The net is cifar10-resnet20 of --data, left out where that is not there. Searches and plans judge by the first half of
the test images; the second half, which none of them has seen, tells whether they flatter themselves. Intervals are of
the paired difference, 95 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nets
from tersor.evaluation.nets.accuracy import evaluate_net
from tersor.graph.capture import capture
from tersor.graph.net import Net
from tersor.pipeline.nets.judge import scores_by
from tersor.pipeline.nets.mixing.goals import NetGoal
from tersor.pipeline.nets.planning import open_net_planner
from tersor.pipeline.nets.quantizing import NetHow, quantize_network

ROOT = Path(__file__).parents[1]
CALIBRATION, BATCH = 256, 64


def batches(*arrays: Any) -> list[Any]:
    """Arrays side by side, BATCH rows at a time."""
    parts = [[array[start : start + BATCH] for array in arrays] for start in range(0, len(arrays[0]), BATCH)]
    return [part[0] if len(part) == 1 else tuple(part) for part in parts]


def made(source: Net, how: NetHow, max_drop: float) -> Iterator[tuple[str, Net]]:
    """Yield every way of making it."""
    for name in ("int8", "int4"):
        yield name, quantize_network(source, name, how).quantized.net
        searched = quantize_network(source, name, replace(how, max_drop=max_drop, force=True))
        yield f"{name}, --max-drop {max_drop:g}", searched.quantized.net
    planner = open_net_planner(source, how)
    for goal in (NetGoal(max_drop=max_drop), NetGoal(max_drop=0.0)):
        planned = planner.plan(goal)
        kinds = [*planned.file.formats.values()]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
        told, found = planned.file.predicted["kl"], planned.file.measured["kl"]
        yield f"plan, {goal.described()}: {counts}; {told:.4f} nats told, {found:.4f} measured", planned.net.net


def main() -> None:
    """Print one row a net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    folder = options.data / "cifar10-resnet20"
    if not folder.is_dir():
        sys.stdout.write(f"{folder}: not there, so nothing is measured\n")
        return
    source = capture(nets.cifar_resnet20(folder), torch.zeros(2, 3, 32, 32))
    with np.load(folder / "cifar10.npz") as arrays:
        calibration, test = (nets.normalised(arrays[name]).numpy() for name in ("calibration_x", "test_x"))
        labels = arrays["test_y"].astype(np.int64)
    middle = len(test) // 2
    halves = [batches(test[:middle], labels[:middle]), batches(test[middle:], labels[middle:])]
    how = NetHow(batches(calibration[:CALIBRATION]), data=halves[0], bench=False, threads=options.threads)
    sys.stdout.write(f"float: {len(source.to_bytes()):,} bytes\n")
    full = scores_by(source, options.threads)
    for name, net in made(source, how, options.max_drop):
        cells = []
        for half in halves:
            drop = evaluate_net(scores_by(net, options.threads), against=full, data=half).metric("accuracy_drop")
            ends = [] if drop is None else [drop.value, drop.low or 0.0, drop.high or 0.0]
            cells.append("{:.2f} ({:.2f} … {:.2f})".format(*(100 * end for end in ends)) if ends else "–")
        sys.stdout.write(f"{name}: {len(net.to_bytes()):,} bytes; lost, points: {cells[0]}; unseen {cells[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
