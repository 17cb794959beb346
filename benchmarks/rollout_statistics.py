"""How often do rollouts decide wrongly, and how soon rightly? Sequential tests, fixed thresholds, a peeked z-test.

Simulates rollouts, looked at every 100 requests of the candidate, which serves 10 % of the traffic beside its control
(900 requests a look); its latencies are lognormal (σ 0.5), its pairs of quality differ in 2 % each way. Prints how many
were rolled back, how many within 1000 requests, and the median of the candidate's requests until then, for

- the tests of tersor.deploy.rollout, levels 1.5 % agreement, 2 % errors, 1 % latency, 0.5 % quality, 5 % together;
- fixed thresholds: rolled back at the fifth look that fails (errors > 1 %, agreement < 98 %, p95 > 1.25 × the control's
  long-term p95, quality lower by more than 2 points), promoted at the end of 50 looks;
- a z-test of all requests so far at every look, 5 % one-sided.

    python benchmarks/rollout_statistics.py [--runs 4000] [--looks 100] [--processes 2]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.deploy.rollout.decision import StepProgress, StepRules, decide
from tersor.deploy.rollout.sequential import Agreement, AnyTest, Count, ErrorRate, ErrorRules, Latency, Quality
from tersor.evaluation.distributions import beta_share

Array: TypeAlias = npt.NDArray[Any]

LOOK, CONTROL = 100, 900
SIGMA, DIFFERING = 0.5, 0.02
P95 = math.exp(1.644854 * SIGMA)
FAILURES, FIXED_LOOKS = 5, 50
Z = 1.644854
CHUNK = 50
METRICS = ("agreement", "error_rate", "latency", "quality")


@dataclass(frozen=True, slots=True)
class World:
    """What candidate and control are truly like, and the rise of errors that is harmful."""

    agreement: float = 1.0
    base: float = 0.005
    errors: float = 0.005
    slower: float = 1.0
    loss: float = 0.0
    margin: float = 0.005

    def look(self, rng: np.random.Generator) -> dict[str, tuple[Any, ...]]:
        """What one look brings, by metric, as `update` of the tests takes it."""
        ours, theirs = np.exp(SIGMA * rng.standard_normal(LOOK)), np.exp(SIGMA * rng.standard_normal(CONTROL))
        u = rng.random(LOOK)
        return {
            "agreement": ((rng.random(LOOK) < self.agreement).astype(np.float64),),
            "error_rate": (
                Count(int(rng.binomial(LOOK, self.errors)), LOOK),
                Count(int(rng.binomial(CONTROL, self.base)), CONTROL),
            ),
            "latency": (self.slower * ours, theirs),
            "quality": (np.where(u < DIFFERING, 1.0, np.where(u < 2 * DIFFERING + self.loss, -1.0, 0.0)),),
        }


def begun(margin: float) -> dict[str, Any]:
    """All four tests before the first look."""
    return {
        "agreement": Agreement.begin(),
        "error_rate": ErrorRate.begin(ErrorRules(margin=margin)),
        "latency": Latency.begin(),
        "quality": Quality.begin(),
    }


def failed(metric: str, look: tuple[Any, ...]) -> bool:
    """Whether a look fails its fixed threshold."""
    if metric == "error_rate":
        return bool(look[0].share > 0.01)
    if metric == "agreement":
        return bool(look[0].mean() < 0.98)
    if metric == "latency":
        return bool(np.quantile(look[0], 0.95) > 1.25 * P95)
    return bool(look[0].mean() < -0.02)


class Peeked:
    """Sums of a z-test over all looks so far."""

    def __init__(self) -> None:
        self.sums = np.zeros((2, 3))

    def rejects(self, metric: str, look: tuple[Any, ...]) -> bool:
        """Take one more look; whether the candidate is now significantly worse."""
        for side, sample in enumerate(look):
            if isinstance(sample, Count):
                self.sums[side] += (sample.total, sample.hits, sample.hits)
            else:
                self.sums[side] += (len(sample), sample.sum(), (sample**2).sum())
        n, totals, squares = self.sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            means = totals / n
            variances = (squares / n - means**2) / n
        if metric == "agreement":  # against the agreement that is tolerated, not against a control
            return bool((0.99 - means[0]) > Z * math.sqrt(0.99 * 0.01 / n[0]))
        if metric == "quality":
            return bool(-means[0] > Z * math.sqrt(variances[0]) > 0)
        return bool(means[0] - means[1] > Z * math.sqrt(variances.sum()) > 0)


def rollouts(world: World, metrics: tuple[str, ...], looks: int, chunk: int) -> list[tuple[float, float, float, float]]:
    """Requests until rolled back by the tests, by thresholds, by the z-test, and until promoted; of CHUNK rollouts."""
    rng, rules, found = np.random.default_rng(chunk), StepRules(least_samples=500, least_s=0.0), []
    for _ in range(CHUNK):
        tests: dict[str, AnyTest] = {name: test for name, test in begun(world.margin).items() if name in metrics}
        peeked = {name: Peeked() for name in metrics}
        failures, ends = dict.fromkeys(metrics, 0), [math.inf] * 4
        for number in range(1, looks + 1):
            seen, now = world.look(rng), float(number * LOOK)
            for name in metrics:
                failures[name] += failed(name, seen[name])
                if peeked[name].rejects(name, seen[name]):
                    ends[2] = min(ends[2], now)
            if number <= FIXED_LOOKS and max(failures.values()) >= FAILURES:
                ends[1] = min(ends[1], now)
            if math.isinf(ends[0]):
                # Tests go on after a promotion: a wrong rollback may come later as well.
                tests = {name: updated(tests[name], seen[name]) for name in metrics}
                if any(test.harm.is_refuted for test in tests.values()):
                    assert decide(tests, rules, StepProgress(number * LOOK, now)).action == "ROLL_BACK"
                    ends[0] = now
                elif math.isinf(ends[3]) and all(test.safe.is_refuted for test in tests.values()):
                    action = decide(tests, rules, StepProgress(number * LOOK, now)).action
                    ends[3] = now if action == "PROMOTE_STEP" else math.inf
            if all(map(math.isfinite, ends[:3])):
                break
        found.append((ends[0], ends[1], ends[2], ends[3]))
    return found


def updated(test: Any, look: tuple[Any, ...]) -> AnyTest:
    """The test after one more look."""
    after: AnyTest = test.update(*look)
    return after


def simulate(world: World, metrics: tuple[str, ...], options: argparse.Namespace, pool: ProcessPoolExecutor) -> Array:
    """[runs, 4] requests until each of the four ends; infinite where it did not come within the looks."""
    chunks = range(math.ceil(options.runs / CHUNK))
    job: Callable[[int], list[tuple[float, float, float, float]]] = partial(rollouts, world, metrics, options.looks)
    return np.array([run for chunk in pool.map(job, chunks) for run in chunk])


def cells(ends: Array) -> Iterator[str]:
    """Share rolled back, share within 1000 requests, median requests, of the three ways to decide."""
    for column in ends[:, :3].T:
        median = np.quantile(column, 0.5, method="higher")
        yield f"{np.isfinite(column).mean():6.1%}"
        yield f"{(column <= 1000).mean():6.1%}"
        yield f"{median:5.0f}" if math.isfinite(median) else "    –"


def ceiling(level: float, requests: int, base: float, bad: float) -> float:
    """Power of the best test there is (Neyman and Pearson): one look at `requests`, both rates known, a random tie."""
    first = next(k for k in range(1, requests) if beta_share(base, k, requests - k + 1) <= level)
    (power, used), (more, beyond) = (
        [beta_share(rate, k, requests - k + 1) for rate in (bad, base)] for k in (first, first - 1)
    )
    return power + (more - power) * (level - used) / (beyond - used)


GOOD: dict[str, tuple[World, tuple[str, ...]]] = {
    "all equal, errors 0.1 %": (World(base=0.001, errors=0.001), METRICS),
    "all equal, errors 0.5 %": (World(), METRICS),
    "all equal, errors 1 %, margin 1 point": (World(base=0.01, errors=0.01, margin=0.01), METRICS),
    "all equal, errors 1 %, margin ½ point": (World(base=0.01, errors=0.01), METRICS),
    "at every threshold: agreement 99 % as well": (World(agreement=0.99), METRICS),
    "agreement 99 % alone": (World(agreement=0.99), METRICS[:1]),
    "errors 0.1 % alone": (World(base=0.001, errors=0.001), METRICS[1:2]),
    "errors 0.5 % alone": (World(), METRICS[1:2]),
    "errors 1 % alone": (World(base=0.01, errors=0.01), METRICS[1:2]),
    "latency alone": (World(), METRICS[2:3]),
    "quality alone": (World(), METRICS[3:]),
}
BAD: dict[str, tuple[World, tuple[str, ...]]] = {
    "agreement 98 % (−1)": (World(agreement=0.98), METRICS[:1]),
    "agreement 97 % (−2)": (World(agreement=0.97), METRICS[:1]),
    "agreement 95 %": (World(agreement=0.95), METRICS[:1]),
    "agreement 94 % (−5)": (World(agreement=0.94), METRICS[:1]),
    "errors 0.5 → 1 % (×2)": (World(errors=0.01), METRICS[1:2]),
    "errors 0.5 → 2 % (×4)": (World(errors=0.02), METRICS[1:2]),
    "errors 0.5 → 2.5 % (×5)": (World(errors=0.025), METRICS[1:2]),
    "latency +10 %": (World(slower=1.1), METRICS[2:3]),
    "latency +25 %": (World(slower=1.25), METRICS[2:3]),
    "quality −1 point": (World(loss=0.01), METRICS[3:]),
    "quality −2 points": (World(loss=0.02), METRICS[3:]),
    "quality −5 points": (World(loss=0.05), METRICS[3:]),
}
HEAD = (
    "| truth | tests: rolled back | ≤ 1000 | median | fixed thresholds | ≤ 1000 | median "
    "| peeked z-test | ≤ 1000 | median |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def table(rows: dict[str, tuple[World, tuple[str, ...]]], options: argparse.Namespace, pool: Any) -> dict[str, Array]:
    """Print one row a scenario; return what was simulated."""
    print(HEAD)
    found = {}
    for name, (world, metrics) in rows.items():
        found[name] = simulate(world, metrics, options, pool)
        print(f"| {name} | {' | '.join(cells(found[name]))} |", flush=True)
    return found


def agreement_median(runs: int) -> float:
    """Median of shadowed requests until an agreement of 95 % is harmful, with a look after every request."""
    rng = np.random.default_rng(95)
    tests = (Agreement.begin().update(rng.random(2000) < 0.95) for _ in range(runs))
    return float(np.median([test.harm.crossed_at or math.inf for test in tests]))


def judged(text: str, is_met: bool) -> None:
    """Print one goal."""
    print(f"{'met   ' if is_met else 'MISSED'}  {text}")


def goals(good: dict[str, Array], bad: dict[str, Array], runs: int) -> None:
    """Print the goals, each with what was reached."""
    for name in list(GOOD)[:4]:
        wrong, promoted = np.isfinite(good[name][:, 0]).mean(), np.isfinite(good[name][:, 3]).mean()
        median = np.quantile(good[name][:, 3], 0.5, method="higher")
        judged(f"{name}: ≤ 3 % wrong rollbacks: {wrong:.1%}", wrong <= 0.03)
        judged(f"{name}: ≥ 95 % promotions: {promoted:.1%}, median {median:.0f} requests", promoted >= 0.95)
    ends = bad["errors 0.5 → 2 % (×4)"][:, 0]
    caught, median = (ends <= 1000).mean(), np.quantile(ends, 0.5, method="higher")
    judged(f"errors 0.5 → 2 %: ≥ 99 % caught in ≤ 1000 requests: {caught:.1%}", caught >= 0.99)
    judged(f"errors 0.5 → 2 %: median ≤ 500 requests: {median:.0f}", median <= 500)
    print(f"        99 % are caught in {np.quantile(ends, 0.99, method='higher'):.0f} requests")
    best = ceiling(0.02, 1000, 0.005, 0.02)
    print(
        f"        no test of level 2 % catches more than {best:.1%} of them, even if it knows both rates and looks once"
    )
    shadowed = agreement_median(runs)
    judged(f"agreement 95 % instead of ≥ 99 %: median ≤ 100 shadowed requests: {shadowed:.0f}", shadowed <= 100)


def main() -> int:
    """Simulate, print the tables, judge the goals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--looks", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    begin = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        print(f"{options.runs} rollouts a row, {options.looks} looks of {LOOK} requests\n\n## Good candidates\n")
        good = table(GOOD, options, pool)
        print("\n## Bad candidates, by the one test that sees it\n")
        bad = table(BAD, options, pool)
    print("\n## Goals\n")
    goals(good, bad, options.runs)
    print(f"\n{time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
