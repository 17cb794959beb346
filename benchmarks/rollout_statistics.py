"""How often do rollouts decide wrongly, and how soon rightly? Sequential tests, fixed thresholds, a peeked z-test.

Simulates rollouts, each metric by itself and all four together, looked at every 100 requests of the candidate, which
serves 10 % of the traffic beside its control (900 requests a look); its latencies are lognormal (σ 0.5), its pairs of
quality differ in 2 % each way. One row has the shares of a rollout's own steps instead: 500 requests of the candidate
at 1 % of the traffic, at 5 %, at 25 %, and then half of it. Prints how many were rolled back, how many within 1000
requests, and the median of the candidate's requests until then, for

- the tests of tersor.deploy.rollout, levels 1.3 % agreement, 2.2 % errors, 1 % latency, 0.5 % quality, 5 % in all;
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
from tersor.deploy.rollout.sequential import Agreement, Count, ErrorRate, ErrorRules, Latency, Quality
from tersor.evaluation.distributions import beta_share

Array: TypeAlias = npt.NDArray[Any]

LOOK, CONTROL = 100, 900
STEPS = (9900,) * 5 + (1900,) * 5 + (300,) * 5
"""Requests of the control in each look of a rollout by steps; 100 in those after them."""
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
    by_steps: bool = False

    def look(self, metric: str, rng: np.random.Generator, number: int) -> tuple[Any, ...]:
        """What the look of a number, from 0, brings, as `update` of the metric's test takes it."""
        if metric == "agreement":
            return ((rng.random(LOOK) < self.agreement).astype(np.float64),)
        if metric == "error_rate":
            control = (*STEPS, LOOK)[min(number, len(STEPS))] if self.by_steps else CONTROL
            ours, theirs = int(rng.binomial(LOOK, self.errors)), int(rng.binomial(control, self.base))
            return Count(ours, LOOK), Count(theirs, control)
        if metric == "latency":
            return self.slower * np.exp(SIGMA * rng.standard_normal(LOOK)), np.exp(SIGMA * rng.standard_normal(CONTROL))
        u = rng.random(LOOK)
        return (np.where(u < DIFFERING, 1.0, np.where(u < 2 * DIFFERING + self.loss, -1.0, 0.0)),)


def begun(metric: str, margin: float) -> Any:
    """The test of a metric before the first look."""
    if metric == "error_rate":
        return ErrorRate.begin(ErrorRules(margin=margin))
    tests: dict[str, Any] = {"agreement": Agreement, "latency": Latency, "quality": Quality}
    return tests[metric].begin()


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


Ends: TypeAlias = tuple[float, float, float, float]


def rollouts(world: World, metric: str, looks: int, chunk: int) -> list[Ends]:
    """Requests until rolled back by the test, by thresholds, by the z-test, and until promoted; of CHUNK rollouts."""
    rng = np.random.default_rng([METRICS.index(metric), chunk])
    return [rollout(world, metric, looks, rng) for _ in range(CHUNK)]


def rollout(world: World, metric: str, looks: int, rng: np.random.Generator) -> Ends:
    """The ends of one rollout that is watched by one test; infinite where they did not come."""
    test, peeked, rules = begun(metric, world.margin), Peeked(), StepRules(least_samples=500, least_s=0.0)
    harmful = fixed = significant = promoted = math.inf
    failures = 0
    for number in range(1, looks + 1):
        seen, now = world.look(metric, rng, number - 1), float(number * LOOK)
        if number <= FIXED_LOOKS and math.isinf(fixed):
            failures += failed(metric, seen)
            fixed = now if failures == FAILURES else math.inf
        if math.isinf(significant) and peeked.rejects(metric, seen):
            significant = now
        if math.isinf(harmful):
            # The test goes on after a promotion: a wrong rollback may come later as well.
            test = test.update(*seen)
            has_harmed = test.harmed_at is not None if isinstance(test, ErrorRate) else test.harm.is_refuted
            if has_harmed or (test.safe.is_refuted and math.isinf(promoted)):
                action = decide({metric: test}, rules, StepProgress(number * LOOK, now)).action
                harmful = now if action == "ROLL_BACK" else math.inf
                promoted = now if action == "PROMOTE_STEP" else promoted
        if math.isfinite(harmful) and math.isfinite(significant) and (math.isfinite(fixed) or number >= FIXED_LOOKS):
            break
    return harmful, fixed, significant, promoted


def simulate(world: World, metric: str, options: argparse.Namespace, pool: ProcessPoolExecutor) -> Array:
    """[runs, 4] the ends of every rollout."""
    chunks = range(math.ceil(options.runs / CHUNK))
    job: Callable[[int], list[Ends]] = partial(rollouts, world, metric, options.looks)
    return np.array([run for chunk in pool.map(job, chunks) for run in chunk])


def together(ends: list[Array]) -> Array:
    """The ends of rollouts that are watched by several tests: the first rollback, and the last "safe" before it."""
    stacked = np.stack(ends)
    first, last = stacked[:, :, :3].min(axis=0), stacked[:, :, 3].max(axis=0)
    return np.column_stack([first, np.where(last < first[:, 0], last, math.inf)])


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


def fair_ceiling(level: float, requests: int, control: int, base: float, bad: float) -> float:
    """Power of the best test that knows no rate, and compares with a control at the same time (Fisher, a random tie).

    It looks once; one that may be believed at every look has to be content with less.
    """
    ours, theirs = np.arange(requests + 1), np.arange(control + 1)
    mine, others = np.exp(_log_binomial(requests, ours, bad)), np.exp(_log_binomial(control, theirs, base))
    power = 0.0
    for errors in range(int(4 * (requests * bad + control * base))):
        k = ours[max(0, errors - control) : min(errors, requests) + 1][::-1]  # the most telling first
        chance = np.exp(
            _log_choose(requests, k) + _log_choose(control, errors - k) - _log_choose(requests + control, errors)
        )
        before = np.cumsum(chance) - chance
        refuted = np.clip((level - before) / np.maximum(chance, 1e-300), 0.0, 1.0)
        power += float((refuted * mine[k] * others[errors - k]).sum())
    return power


def _log_choose(n: int, k: Any) -> Any:
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return logs[n] - logs[k] - logs[n - k]


def _log_binomial(n: int, k: Array, share: float) -> Array:
    return np.asarray(_log_choose(n, k) + k * math.log(share) + (n - k) * math.log1p(-share))


GOOD: dict[str, tuple[str, World]] = {
    "agreement 100 %": ("agreement", World()),
    "agreement 99 %, the threshold": ("agreement", World(agreement=0.99)),
    "errors 0.1 %": ("error_rate", World(base=0.001, errors=0.001)),
    "errors 0.5 %": ("error_rate", World()),
    "errors 1 %, margin 1 point": ("error_rate", World(base=0.01, errors=0.01, margin=0.01)),
    "errors 1 %, margin ½ point": ("error_rate", World(base=0.01, errors=0.01)),
    "latency": ("latency", World()),
    "quality": ("quality", World()),
}
TOGETHER = {
    f"all four, {errors}": ("agreement 100 %", errors, "latency", "quality")
    for errors in ("errors 0.1 %", "errors 0.5 %", "errors 1 %, margin 1 point", "errors 1 %, margin ½ point")
} | {"all four, every one at its threshold": ("agreement 99 %, the threshold", "errors 0.5 %", "latency", "quality")}
BAD: dict[str, tuple[str, World]] = {
    "agreement 98 % (−1)": ("agreement", World(agreement=0.98)),
    "agreement 97 % (−2)": ("agreement", World(agreement=0.97)),
    "agreement 95 %": ("agreement", World(agreement=0.95)),
    "agreement 94 % (−5)": ("agreement", World(agreement=0.94)),
    "errors 0.5 → 1 % (×2)": ("error_rate", World(errors=0.01)),
    "errors 0.5 → 2 % (×4)": ("error_rate", World(errors=0.02)),
    "errors 0.5 → 2 %, by steps": ("error_rate", World(errors=0.02, by_steps=True)),
    "errors 0.5 → 2.5 % (×5)": ("error_rate", World(errors=0.025)),
    "latency +10 %": ("latency", World(slower=1.1)),
    "latency +25 %": ("latency", World(slower=1.25)),
    "quality −1 point": ("quality", World(loss=0.01)),
    "quality −2 points": ("quality", World(loss=0.02)),
    "quality −5 points": ("quality", World(loss=0.05)),
}
HEAD = (
    "| truth | tests: rolled back | ≤ 1000 | median | fixed thresholds | ≤ 1000 | median "
    "| peeked z-test | ≤ 1000 | median |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def table(rows: dict[str, tuple[str, World]], options: argparse.Namespace, pool: Any) -> dict[str, Array]:
    """Print one row a scenario; return what was simulated."""
    print(HEAD)
    found = {}
    for name, (metric, world) in rows.items():
        found[name] = simulate(world, metric, options, pool)
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
    for name in list(TOGETHER)[:4]:
        wrong, promoted = np.isfinite(good[name][:, 0]).mean(), np.isfinite(good[name][:, 3]).mean()
        median = np.quantile(good[name][:, 3], 0.5, method="higher")
        judged(f"{name}: ≤ 3 % wrong rollbacks: {wrong:.1%}", wrong <= 0.03)
        judged(f"{name}: ≥ 95 % promotions: {promoted:.1%}, median {median:.0f} requests", promoted >= 0.95)
    ends = bad["errors 0.5 → 2 % (×4)"][:, 0]
    caught, median = (ends <= 1000).mean(), np.quantile(ends, 0.5, method="higher")
    judged(f"errors 0.5 → 2 %: ≥ 99 % caught in ≤ 1000 requests: {caught:.1%}", caught >= 0.99)
    judged(f"errors 0.5 → 2 %: median ≤ 500 requests: {median:.0f}", median <= 500)
    print(f"        99 % are caught in {np.quantile(ends, 0.99, method='higher'):.0f} requests")
    level = ErrorRules().level
    best = ceiling(level, 1000, 0.005, 0.02)
    print(
        f"        no test of level {level:.1%} catches more than {best:.1%}, even if it knows both rates and looks once"
    )
    fair = fair_ceiling(level, 1000, 9000, 0.005, 0.02)
    print(f"        … and none catches more than {fair:.1%} that compares with a control and knows neither rate")
    stepped = (bad["errors 0.5 → 2 %, by steps"][:, 0] <= 1000).mean()
    fair = fair_ceiling(level, 1000, sum(STEPS[:10]), 0.005, 0.02)
    print(f"        with the shares of a rollout's steps {stepped:.1%} are caught, of {fair:.1%} at most")
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
        for name, parts in TOGETHER.items():
            good[name] = together([good[part] for part in parts])
            print(f"| {name} | {' | '.join(cells(good[name]))} |")
        print("\n## Bad candidates, by the one test that sees it\n")
        bad = table(BAD, options, pool)
    print("\n## Goals\n")
    goals(good, bad, options.runs)
    print(f"\n{time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
