"""What training on integers gets back of what rounding loses, over many nets: one net and 497 images say little.

    python benchmarks/qat_seeds.py [--seeds 16] [--bits 3 4] [--damping 0 0.002] [--epochs 60] [--processes N] [--json]

Each seed splits scikit-learn's digits anew and trains a DigitNet of 12 channels; it is rounded by plain PTQ (nearest,
ranges of all that was seen, nothing corrected), by tersor's PTQ and by QAT with each weight of `restlessness`. Printed
are images that the float net has right and the other has not, of 497, on average: "closed" is the share of PTQ's loss
that QAT gets back, with the interval over seeds (bootstrap, 95 %). Needs: pip install 'tersor[torch,onnx]' scikit-learn
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import tersor
from tersor.graph.ptq import Recipe
from tersor.pipeline.nets.training import Training

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import batches, load, train

PLAIN, OURS = "plain PTQ", "PTQ"
CHANNELS, FLOAT_EPOCHS, RESAMPLED = 12, 30, 2000


@dataclass(frozen=True)
class Row:
    """One net: images that are right in float, and on integers."""

    seed: int
    bits: int
    way: str
    images: int
    before: int
    after: int

    @property
    def lost(self) -> int:
        """Images that the float net had right on balance."""
        return self.before - self.after


def measured(seed: int, bits: int, damping: float | None, way: str, epochs: int) -> Row:
    """Train a net, quantize it, and count; `damping` None: PTQ alone."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x, y, test_x, test_y = load(seed=seed)
    net = train(x, y, channels=CHANNELS, epochs=FLOAT_EPOCHS, seed=seed)
    recipe = Recipe()
    if way == PLAIN:
        recipe = Recipe(ranges="minmax", weights="rtn", equalize=False, smooth=False, biases=False)
    training = None if damping is None else Training(batches(x, y, seed=1), epochs=epochs, damping=damping)
    calibration, test = batches(x[:512], y[:512]), batches(test_x, test_y)
    result = tersor.quantize(
        net, f"int{bits}", calibration=calibration, data=test, recipe=recipe, training=training, bench=False, threads=1
    )
    quality = result.card.evaluations[0]
    before, after = (quality.metric(name) for name in ("reference_top1_accuracy", "top1_accuracy"))
    assert before is not None
    assert after is not None
    return Row(seed, bits, way, len(test_y), round(before.value * len(test_y)), round(after.value * len(test_y)))


def closed(rounded: Sequence[Row], taught: Sequence[Row]) -> tuple[float, float, float]:
    """Return the share of the loss that is got back over all seeds, and its interval."""
    lost = np.array([[one.lost for one in sorted(rows, key=lambda row: row.seed)] for rows in (rounded, taught)])
    drawn = np.random.default_rng(0).integers(lost.shape[1], size=(RESAMPLED, lost.shape[1]))
    sums = lost[:, drawn].sum(-1)
    low, high = np.quantile(1 - sums[1] / np.maximum(sums[0], 1), [0.025, 0.975])
    return float(1 - lost[1].sum() / max(lost[0].sum(), 1)), float(low), float(high)


def table(rows: Sequence[Row]) -> str:
    """Return the figures of every width and way as text."""
    lines = [f"{'weights':8} {'way':14} {'nets':>4} {'lost, images':>13} {'points':>7} {'worst':>6}  closed, % [95 %]"]
    for bits in sorted({row.bits for row in rows}):
        mine = [row for row in rows if row.bits == bits]
        for way in dict.fromkeys(sorted((row.way for row in mine), key=lambda way: (way != PLAIN, way != OURS, way))):
            these = [row for row in mine if row.way == way]
            lost = [row.lost for row in these]
            seeds = {row.seed for row in these}
            rounded = [row for row in mine if row.way == OURS and row.seed in seeds]
            share = ""
            if way not in (PLAIN, OURS) and len(rounded) == len(these):
                share = "{:6.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in closed(rounded, these)))
            points = 100 * np.mean([row.lost / row.images for row in these])
            lines.append(
                f"int{bits:<5} {way:14} {len(these):4} {np.mean(lost):13.2f} {points:7.2f} {max(lost):6}  {share}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--bits", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--damping", type=float, nargs="*", default=[0.0, 2e-3])
    parser.add_argument("--epochs", type=int, default=60, help="of QAT")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of the table")
    options = parser.parse_args()
    ways = [(PLAIN, None), (OURS, None), *((f"QAT, {damping:g}", damping) for damping in options.damping)]
    rows: list[Row] = []
    with ProcessPoolExecutor(options.processes) as pool:
        asked = [
            pool.submit(measured, seed, bits, damping, way, options.epochs)
            for bits in options.bits
            for way, damping in ways
            for seed in range(options.seeds)
        ]
        for done in as_completed(asked):
            rows.append(done.result())
            print(f"{len(rows)} of {len(asked)}", end="\r", file=sys.stderr, flush=True)
    print(json.dumps([asdict(row) for row in rows]) if options.json else table(rows))


if __name__ == "__main__":
    main()
