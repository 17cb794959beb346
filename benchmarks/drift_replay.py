"""How many false alarms does a month without drift bring, and how soon is drift found?

Replays hours of 200 requests with 12 features (half normal, half lognormal), each judged against a calibration sample
of 1000 by `tersor.deploy.monitor`, with a budget of one false alarm in 30 days; beside it the folklore limit, an alarm
where any PSI is above 0.2. Then shifts one feature, and prints the hours until the first alarm that names it.

    python benchmarks/drift_replay.py [--months 5] [--repeats 20] [--processes 2]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.deploy.monitor import Distance, FalseAlarmBudget, Histogram, alarming, distances, drift

Array: TypeAlias = npt.NDArray[Any]

FEATURES, REQUESTS, SAMPLE, HOURS = 12, 200, 1000, 720
BUDGET = FalseAlarmBudget()
LATEST = 100


def feature(number: int, rng: np.random.Generator, size: int) -> Array:
    """Numbers of one feature without drift."""
    z = rng.standard_normal(size)
    return z if number % 2 == 0 else np.exp(z)


def shifted(kind: str, values: Array, rng: np.random.Generator) -> Array:
    """The normal feature after it has drifted."""
    if kind == "wider by 30 %":
        return values * 1.3
    if kind == "2 % far outside":
        return np.where(rng.random(len(values)) < 0.02, 50.0, values)
    if kind == "3 % missing":
        return np.where(rng.random(len(values)) < 0.03, np.nan, values)
    return values + float(kind.rsplit(maxsplit=1)[-1])


KINDS = ("shift by 0.1", "shift by 0.25", "shift by 0.5", "wider by 30 %", "2 % far outside", "3 % missing")


def month(chosen: Distance, seed: int) -> tuple[int, int]:
    """Hours with an alarm in a month without drift: of ours, and of the folklore limit."""
    rng = np.random.default_rng(seed)
    references = {f"f{i}": Histogram.of(feature(i, rng, SAMPLE)) for i in range(FEATURES)}
    ours = folklore = 0
    for hour in range(HOURS):
        p_values, largest = {}, 0.0
        for i, (name, reference) in enumerate(references.items()):
            counts = reference.count(feature(i, rng, REQUESTS))
            p_values[name] = drift(reference, counts, chosen=chosen, draws=BUDGET.draws(FEATURES), seed=hour).p_value
            largest = max(largest, float(distances(reference, counts)["psi"]))
        ours += bool(alarming(p_values, BUDGET))
        folklore += largest > 0.2
    return ours, folklore


def hours_to_alarm(kind: str, chosen: Distance, seed: int) -> float:
    """Hours until an alarm names the feature that has drifted; infinite after 100."""
    rng = np.random.default_rng(1000 + seed)
    references = {f"f{i}": Histogram.of(feature(i, rng, SAMPLE)) for i in range(FEATURES)}
    for hour in range(1, LATEST + 1):
        p_values = {}
        for i, (name, reference) in enumerate(references.items()):
            values = feature(i, rng, REQUESTS)
            counts = reference.count(shifted(kind, values, rng) if i == 0 else values)
            p_values[name] = drift(reference, counts, chosen=chosen, draws=BUDGET.draws(FEATURES), seed=hour).p_value
        if "f0" in alarming(p_values, BUDGET):
            return hour
    return math.inf


def main() -> int:
    """Replay months without drift, then every kind of drift."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--months", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    begin = time.monotonic()
    tested: tuple[Distance, ...] = ("js", "ks")
    with ProcessPoolExecutor(options.processes) as pool:
        print("| tested | false alarms in each month, budget 1 | hours of 720 with a PSI above 0.2 |\n|---|---|---|")
        for chosen in tested:
            found = list(pool.map(partial(month, chosen), range(options.months)))
            ours, folklore = (", ".join(str(row[side]) for row in found) for side in (0, 1))
            print(f"| {chosen} | {ours} | {folklore} |", flush=True)
        print("\n| drift of one feature of 12 | js: median hours | latest | ks: median hours | latest |")
        print("|---|--:|--:|--:|--:|")
        for kind in KINDS:
            cells = []
            for chosen in tested:
                hours = list(pool.map(partial(hours_to_alarm, kind, chosen), range(options.repeats)))
                for value in (np.quantile(hours, 0.5, method="higher"), max(hours)):
                    cells.append(f"{value:.0f}" if math.isfinite(value) else f"> {LATEST}")
            print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
