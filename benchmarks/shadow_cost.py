"""What does a shadow cost those who are served? Latency and throughput of a primary beside candidates of every kind.

One gateway serves six models with the same net, which takes some milliseconds of a processor: two without a candidate,
which show what is chance, and those with one in the shadow that is as fast, hangs (SIGSTOP), fails each request, or
computes ten times as long. Each has a fallback in full precision, which the shadow asks too. In each round each model
is asked for some seconds at random moments, open loop, the same moments for all, in random order. Ratios are of the
quantiles of all rounds to those of both models without a candidate, or of one of these to the other; their intervals
come from drawing rounds anew (paired bootstrap). Goal: p99 within 5 %: met where all of the interval is, missed where
none of it is, open else. Where a machine has other work too, that work decides such quantiles: rounds in which other
programs took more than `--others` of the processors are made, and left out.

    python benchmarks/shadow_cost.py [--rounds 40] [--seconds 2] [--load 0.2] [--share 10] [--time 1] [--others 0.05]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving import artefacts
from serving.asking import TIMEOUT_S, Asked, capacities, infer_bytes
from serving.live import CLIENT_CORE, SERVER_CORE, Live, gateway, pin, until
from tersor.deploy.gateway.rolling.priority import can_return
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address
from tersor.deploy.load.generator import Answer, run_step, sender
from tersor.deploy.load.schedule import Step

WIDTH, LAYERS, SLOWER = 512, 120, 10
NONE, AGAIN = "no shadow", "no shadow, again"
ARMS = {
    NONE: "",
    AGAIN: "",
    "healthy": "net.onnx",
    "hung": "hung.onnx",
    "failing": "failing.onnx",
    "10 × slower": "slower.onnx",
}
GOAL, DRAWS, SETTLE_S = 1.05, 1000, 4.0
MODEL = """
  {name}:
    primary: quantized
    fallback: full
    {candidate}
    variants:
      quantized: {{engine: onnxruntime, path: net.onnx}}
      full: {{engine: onnxruntime, path: net.onnx}}
      {variant}
    limits: {{in_flight: 8, queue: 64}}
    rollout:
      shadow: {share}
      shadow_time: {time}
      min_samples: 100000000
      agreement: {{good: 0.0001, bad: 0.00005, design: 0.00005}}"""
"""Whatever a candidate says or does not say, its rollout stays in the shadow."""


@dataclass(frozen=True)
class Row:
    """One arm; times in milliseconds, ratios and their 95 % intervals to what is without a shadow.

    compared  comparisons a second that the arm was asked
    """

    arm: str
    p50: float
    p99: float
    p50_ratio: tuple[float, float, float]
    p99_ratio: tuple[float, float, float]
    rate: float
    rate_ratio: float
    compared: float
    dropped: int
    requests: int

    @property
    def verdict(self) -> str:
        """Whether it is as near as is wanted, surely."""
        _, low, high = self.p99_ratio
        return "met" if high <= GOAL else "MISSED" if low > GOAL else "open"


def busy_s() -> float:
    """Seconds that all processors together have worked, for whomever."""
    first = Path("/proc/stat").read_text().split("\n", maxsplit=1)[0].split()[1:]
    user, nice, system, _idle, _waits, *others = map(int, first[:8])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def failing(path: Path) -> None:
    """Write a net that loads, and fails whatever it is given."""
    import onnx  # noqa: PLC0415 (as `artefacts.net` does)

    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    shape = onnx.numpy_helper.from_array(np.array([-1, 1_000_003]), "shape")
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes, "net", [info("x", kind, ["n", WIDTH])], [info("y", kind, ["m", 1_000_003])], [shape]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), path)


def name_of(arm: str) -> str:
    """What an arm's model is called."""
    return "m" + "".join(filter(str.isalnum, arm))


def deployment(share: float, time_share: float) -> str:
    """All models."""
    found = "models:"
    for arm, file in ARMS.items():
        variant = f"candidate: {{engine: onnxruntime, path: {file}}}" if file else ""
        candidate = "candidate: candidate" if file else ""
        found += MODEL.format(name=name_of(arm), candidate=candidate, variant=variant, share=share, time=time_share)
    return found


@contextlib.contextmanager
def stopped(live: Live, arm: str) -> Iterator[None]:
    """Stop the candidate of the arm that hangs, and let it go on then: after ten seconds it would be started anew."""
    if arm != "hung":
        yield
        return
    pid = live.engine(ARMS[arm])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def latencies(asked: Asked, rate: float, seconds: float, seed: int) -> list[float]:
    """Milliseconds from the moment that each request was due to its answer; all must be answered."""
    address = Address.parse(asked.url)
    client = Client(address, 64)
    await client.find()
    inner, found = sender(client, asked.work(address)), list[float]()
    loop = asyncio.get_running_loop()

    async def send(index: int, deadline: float) -> Answer:
        due = loop.time()  # the generator calls it then
        answer = await inner(index, deadline)
        if not answer.is_good:
            raise RuntimeError(f"a client saw status {answer.status} {answer.error}")
        found.append(1e3 * (answer.ended - due))
        return answer

    try:
        await run_step(Step(rate, seconds, "poisson", seed), send, timeout_s=TIMEOUT_S)
    finally:
        await client.close()
    return found


def seen(live: Live, arm: str) -> dict[str, Any]:
    """What the gateway tells of an arm's shadow."""
    with urllib.request.urlopen(f"{live.url}/v1/rollout/{name_of(arm)}") as response:
        rollout = json.load(response).get("rollout") or {}
    if ARMS[arm] and rollout.get("state") != "shadow":
        raise RuntimeError(f"{arm}: {rollout.get('state')}: {rollout.get('since')}")
    found: dict[str, Any] = rollout.get("shadow") or {"compared": 0, "dropped": {}}
    return found


def settled(live: Live, arm: str) -> None:
    """Wait until an arm's shadow has nothing left to do: it would slow the next one down."""
    until(lambda: not (shadow := seen(live, arm)).get("in_flight") and not shadow.get("waiting"), SETTLE_S)


def ratio(mine: list[list[float]], theirs: list[list[float]], q: float) -> tuple[float, float, float]:
    """Ratio of a quantile over all rounds, and its interval."""
    rng, rounds, drawn = np.random.default_rng(0), len(mine), []
    for _ in range(DRAWS):
        rows = rng.integers(0, rounds, rounds)
        ours, others = (np.quantile(np.concatenate([one[row] for row in rows]), q) for one in (mine, theirs))
        drawn.append(ours / others)
    whole = np.quantile(np.concatenate(mine), q) / np.quantile(np.concatenate(theirs), q)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(whole), float(low), float(high)


def asked_in_turn(
    options: argparse.Namespace, live: Live, asked: dict[str, Asked], rate: float
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Latencies of every arm in every round, and the share of the processors that others took in each."""
    found: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    others, order = list[float](), np.random.default_rng(0)
    for number in range(options.rounds):
        began, busy, own = time.monotonic(), busy_s(), live.processor_s() + sum(os.times()[:2])
        for place in order.permutation(len(ARMS)):
            arm = list(ARMS)[place]
            with stopped(live, arm):
                found[arm].append(asyncio.run(latencies(asked[arm], rate, options.seconds, number)))
            settled(live, arm)
        whole = (time.monotonic() - began) * (os.cpu_count() or 1)
        ours = live.processor_s() + sum(os.times()[:2]) - own
        others.append(max(0.0, busy_s() - busy - ours) / whole)
    return found, others


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Ask all arms in turn."""
    artefacts.net(folder / "net.onnx", WIDTH, LAYERS)
    artefacts.net(folder / "hung.onnx", WIDTH, LAYERS)
    artefacts.net(folder / "slower.onnx", WIDTH, SLOWER * LAYERS)
    failing(folder / "failing.onnx")
    core = SERVER_CORE if options.one_core else None
    with gateway(deployment(options.share, options.time), folder, core=core) as live:
        asked = {arm: infer_bytes(live.url, name_of(arm), WIDTH) for arm in ARMS}
        rate = options.load * capacities([(live, asked[NONE])], 3, 1.0, 8)[0][-1].rate
        rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for arm in list(ARMS) * 3:
            with stopped(live, arm):
                rates[arm].append(capacities([(live, asked[arm])], 1, options.seconds, 8)[0][0].rate)
        before = {arm: seen(live, arm) for arm in ARMS}
        found, others = asked_in_turn(options, live, asked, rate)
        after = {arm: seen(live, arm) for arm in ARMS}
    quiet = [number for number, share in enumerate(others) if share <= options.others]
    print(
        f"{len(quiet)} of {len(others)} rounds were quiet; others took {statistics.median(others):.1%} in the median",
        file=sys.stderr,
    )
    if not quiet:
        raise SystemExit("no round was quiet: end other programs, or raise --others")
    found = {arm: [rounds[number] for number in quiet] for arm, rounds in found.items()}
    plain = statistics.median(rates[NONE])
    rows, without = [], [one + two for one, two in zip(found[NONE], found[AGAIN], strict=True)]
    for arm, rounds in found.items():
        other = found[AGAIN] if arm == NONE else found[NONE] if arm == AGAIN else without
        whole = np.concatenate(rounds)
        row = Row(
            arm, float(np.quantile(whole, 0.5)), float(np.quantile(whole, 0.99)),
            ratio(rounds, other, 0.5), ratio(rounds, other, 0.99),
            statistics.median(rates[arm]), statistics.median(rates[arm]) / plain,
            (after[arm]["compared"] - before[arm]["compared"]) / (options.rounds * options.seconds),
            sum(after[arm]["dropped"].values()) - sum(before[arm]["dropped"].values()), len(whole),
        )  # fmt: skip
        rows.append(row)
    return rows


def show(rows: list[Row], options: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"{options.rounds} rounds of {options.seconds:g} s, load {options.load:g}, {options.share:g} % compared, "
        f"in {options.time:g} % of the time at most, {'one core' if options.one_core else 'all cores'}; "
        f"candidates {'compute last' if can_return() else 'compute like all others'}"
    )
    print(
        "| candidate | p50, ms | p99, ms | p50 ratio | p99 ratio | /s at most | ratio | compared/s | dropped | goal |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    for row in rows:
        p50, p99 = (f"{one[0]:.3f} ({one[1]:.3f}–{one[2]:.3f})" for one in (row.p50_ratio, row.p99_ratio))
        goal = "" if row.arm in (NONE, AGAIN) else row.verdict
        print(
            f"| {row.arm} | {row.p50:.2f} | {row.p99:.2f} | {p50} | {p99} | {row.rate:.0f} | {row.rate_ratio:.2f} "
            f"| {row.compared:.2f} | {row.dropped} | {goal} |"
        )


def main() -> int:
    """Measure and print; exit code 1 where the goal is surely missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0, help="of an arm in a round")
    parser.add_argument("--load", type=float, default=0.2, help="share of the capacity that is asked for")
    parser.add_argument("--share", type=float, default=10.0, help="percent of the answers that are compared")
    parser.add_argument("--time", type=float, default=1.0, help="percent of the time that comparisons may take")
    parser.add_argument("--others", type=float, default=0.05, help="share of the processors that others may take")
    parser.add_argument("--one-core", action="store_true", help="the gateway and all engines on one core")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    if options.one_core:
        pin(CLIENT_CORE)()
    with tempfile.TemporaryDirectory(prefix="tersor-shadow-") as folder:
        rows = measure(options, Path(folder))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        show(rows, options)
    return int(any(row.verdict == "MISSED" for row in rows if row.arm not in (NONE, AGAIN)))


if __name__ == "__main__":
    sys.exit(main())
