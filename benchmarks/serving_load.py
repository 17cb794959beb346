"""Is the gateway fast, and does it stay so when too many ask? Overhead, throughput, overload, drain.

Gateway and engines run on one core, the client (the generator of `tersor loadtest`) on another; arms take turns.

- overhead: latency through the gateway minus that of the same engine asked directly, at half of the gateway's
  capacity: a net in the client's own process, which then runs on the gateway's core, for what holds up that core
  does not hold up the other; llama.cpp on its own port, asked for the probabilities that the
  sentinels look at too, and without. Goals: p50 1 ms, p99 3 ms.
- throughput: inferences of one row of 64 numbers a second of processor that gateway and engine take, on one core.
  Goal: 3000, or 0.8 of a FastAPI route that multiplies the same matrix in its own process.
- overload: an open loop at twice the capacity, for a net of some 20 ms whose engine is busy with one request. Goals:
  90 % of the capacity answered, the 99th percentile of these at most twice that of half load. The small net, where the
  gateway itself is what is short, has no goal: to refuse is a third of the work of answering.
- drain: SIGTERM with 200 requests under way. Goal: all answered, no process left.

    pip install fastapi  # for the comparison; without it there is none
    python benchmarks/serving_load.py [--rounds 5] [--seconds 4] [--only overhead,throughput,overload,drain] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from serving import artefacts, bare
from serving.asking import Asked, capacities, completion, infer_bytes, infer_json, sent
from serving.live import CLIENT_CORE, SERVER_CORE, Live, gateway, gone, pin, running, until
from tersor.deploy.gateway.watching import TOP
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address, request_bytes
from tersor.deploy.load.generator import Answer, Send, StepRecord
from tersor.deploy.load.recorder import DurationRecorder

WIDTH, HEAVY, LAYERS, TOKENS, DRAINED = artefacts.WIDTH, 1024, 320, 16, 200
TURNS = 8
"""Of each arm in a round, where latencies are compared."""
OVERHEAD_P50_MS, OVERHEAD_P99_MS = 1.0, 3.0
RATE, SHARE, GOODPUT, SLOWER = 3000.0, 0.8, 0.9, 2.0
DEPLOYMENT = (
    f"models:{artefacts.SMALL}"
    """
  heavy:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: onnxruntime, path: heavy.onnx}
      full: {engine: onnxruntime, path: heavy.onnx}
    limits: {in_flight: 1, queue: 1}
  demo:
    primary: quantized
    variants:
      quantized: {engine: llama.cpp, path: small.gguf, context: 512}
    limits: {in_flight: 200, queue: 200}
"""
)


@dataclass(frozen=True)
class Row:
    """One figure and its goal.

    is_met  None where there is no goal
    """

    what: str
    value: float
    unit: str
    goal: str = ""
    is_met: bool | None = None
    detail: str = ""


def direct(path: Path) -> Send:
    """Return what runs a net in this process, as a request is sent."""
    import onnxruntime  # noqa: PLC0415 (only where it is measured)

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    width = session.get_inputs()[0].shape[1]
    row = np.zeros((1, width), np.float32)

    async def send(index: int, deadline: float) -> Answer:
        del index, deadline
        clock = asyncio.get_running_loop().time
        began = clock()
        session.run(["y"], {"x": row})
        return Answer(begun=began, ended=clock(), status=200)

    return send


def overhead(
    live: Live, arms: Sequence[tuple[str, Asked | Send]], *, rounds: int, seconds: float, slots: int
) -> list[Row]:
    """Compare latencies of the first arm with each other one, at half of what `slots` connections get through it.

    The one that comes second has goals.
    """
    through = arms[0][1]
    assert isinstance(through, Asked)
    rate = statistics.median(one.rate for one in capacities([(live, through)], 3, min(seconds, 2), slots)[0]) / 2
    found: dict[str, list[StepRecord]] = {name: [] for name, _ in arms}
    for index in range(TURNS * rounds):
        for name, arm in arms:
            pin(CLIENT_CORE if isinstance(arm, Asked) else SERVER_CORE)()
            record = asyncio.run(sent(arm, rate, seconds / TURNS, first=index * 100_000))
            if record.good < record.requests:
                raise RuntimeError(f"{name}: {record.requests - record.good} requests failed: {record.statuses}")
            found[name].append(record)
    pin(CLIENT_CORE)()
    rows = []
    for name, _ in arms[1:]:
        for q, goal in (("p50", OVERHEAD_P50_MS), ("p99", OVERHEAD_P99_MS)):
            mine, theirs = (1e3 * _pooled(found[one], q) for one in (arms[0][0], name))
            row = Row(f"overhead over {name} {q}", mine - theirs, "ms", detail=f"{theirs:.2f} ms at {rate:.0f}/s")
            has_goal = name == arms[1][0]
            rows.append(replace(row, goal=f"≤ {goal:g}", is_met=row.value <= goal) if has_goal else row)
    return rows


def _pooled(records: list[StepRecord], name: str) -> float:
    """Return a quantile over all rounds: what else runs on the machine is in those of each arm alike."""
    whole = DurationRecorder()
    for record in records:
        whole.merge(record.latency)
    return whole.quantile({"p50": 0.5, "p99": 0.99}[name])


def _quantile(record: StepRecord, name: str) -> float:
    return record.latency.quantile({"p50": 0.5, "p99": 0.99}[name])


def throughput(live: Live, plain: Live | None, rounds: int, seconds: float) -> list[Row]:
    """Compare answers a second of processor with those of a bare route, where there is one.

    What else runs takes from the seconds that pass, and hardly from those of the processor.
    """
    arms = [(live, infer_bytes(live.url, "small", WIDTH)), (live, infer_json(live.url, "small", WIDTH))]
    if plain is not None:
        arms.append((plain, infer_bytes(plain.url, "small", WIDTH, "/raw")))
        arms.append((plain, infer_json(plain.url, "small", WIDTH, "/infer")))
    found = capacities(arms, rounds, seconds, 32)
    rows = []
    for number, kind in enumerate(("bytes", "JSON")):
        mine = found[number]
        rate = statistics.median(one.by_processor for one in mine)
        is_met, detail = rate >= RATE, f"{statistics.median(one.rate for one in mine):.0f} in a second that passed"
        if plain is not None:
            theirs = found[number + 2]
            ratios = [one.by_processor / other.by_processor for one, other in zip(mine, theirs, strict=True)]
            ratio = statistics.median(ratios)
            is_met = is_met or ratio >= SHARE
            detail += f"; FastAPI {statistics.median(one.by_processor for one in theirs):.0f}: {ratio:.2f} of it"
            detail += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        goal = f"≥ {RATE:g} or ≥ {SHARE:g} of FastAPI"
        rows.append(Row(f"throughput {kind}", rate, "/s of a core", goal, is_met, detail))
    return rows


def overload(
    live: Live, name: str, asked: Asked, *, rounds: int, seconds: float, slots: int, has_goal: bool = True
) -> list[Row]:
    """Offer twice the capacity; half of it in turn."""
    rows: list[tuple[float, float, float]] = []
    for index in range(rounds):
        capacity = capacities([(live, asked)], 1, seconds, slots)[0][0].rate
        calm = asyncio.run(sent(asked, capacity / 2, seconds, first=index * 100_000))
        wild = asyncio.run(sent(asked, capacity * 2, seconds, first=index * 100_000 + 50_000))
        odd = {status: count for status, count in wild.statuses.items() if status not in (200, 503)}
        if odd or wild.errors:
            raise RuntimeError(f"{name}: neither answered nor refused: {odd} {dict(wild.errors)}")
        rows.append((wild.good / wild.ended / capacity, _quantile(wild, "p99") / _quantile(calm, "p99"), capacity))
    goodput, slower = (statistics.median(row[place] for row in rows) for place in (0, 1))
    first = f"of {statistics.median(row[2] for row in rows):.0f}/s; rounds {_ends(rows, 0)}"
    goals = (f"≥ {GOODPUT:g}", f"≤ {SLOWER:g}") if has_goal else ("", "")
    met = (goodput >= GOODPUT, slower <= SLOWER) if has_goal else (None, None)
    return [
        Row(f"overload {name}: answered", goodput, "of capacity", goals[0], met[0], first),
        Row(f"overload {name}: accepted p99", slower, "× half load", goals[1], met[1], f"rounds {_ends(rows, 1)}"),
    ]


def _ends(rows: list[tuple[float, float, float]], place: int) -> str:
    values = [row[place] for row in rows]
    return f"{min(values):.2f} to {max(values):.2f}"


async def _drained(url: str, stop: Callable[[], None]) -> int:
    """Send many completions, stop the server once all were taken, and return how many were answered."""
    address = Address.parse(url)
    client, work = Client(address, DRAINED + 1), completion(url, 60).work(address)
    await client.find()
    loop = asyncio.get_running_loop()

    async def ask(index: int) -> bool:
        take = work.reading(loop.time).take
        return await client.send(work.wire(index), take, loop.time() + 60, lambda _: None) == 200

    asked = [asyncio.create_task(ask(index)) for index in range(DRAINED)]
    taken = f'tersor_in_flight_requests{{model="demo"}} {DRAINED}.0'.encode()
    while taken not in (await client.get(request_bytes(address, "/metrics"), 30))[1]:
        if any(task.done() for task in asked):
            raise RuntimeError("some were answered before all were under way: ask for longer texts")
    stop()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    await client.close()
    return sum(answer is True for answer in answers)


def drain(folder: Path) -> list[Row]:
    """End a gateway that answers 200 requests."""
    with gateway(DEPLOYMENT, folder) as live:
        children = live.children()
        began = time.perf_counter()
        answered = asyncio.run(_drained(live.url, lambda: live.process.send_signal(signal.SIGTERM)))
        live.process.wait(40)
        seconds = time.perf_counter() - began
        until(lambda: gone(children), 5)
        left = sum(not gone([pid]) for pid in children)
    detail = f"of {DRAINED} under way at SIGTERM; exit code {live.process.returncode}, {seconds:.1f} s"
    return [
        Row("drain: lost", DRAINED - answered, "requests", "0", answered == DRAINED, detail),
        Row("drain: left", left, "processes", "0", left == 0, f"of {len(children)}"),
    ]


def measure(only: set[str], rounds: int, seconds: float, folder: Path) -> list[Row]:
    """Return all rows."""
    artefacts.net(folder / "small.onnx")
    artefacts.net(folder / "heavy.onnx", HEAVY, LAYERS)
    artefacts.language(folder)
    rows: list[Row] = []
    with ExitStack() as stack:
        live = stack.enter_context(gateway(DEPLOYMENT, folder))
        url = live.url
        if "overhead" in only:
            net = ("net in the client", direct(folder / "small.onnx"))
            rows += overhead(
                live, [("gateway", infer_bytes(url, "small", WIDTH)), net], rounds=rounds, seconds=seconds, slots=32
            )
            with running([bare.__file__, "llama", str(folder / "small.gguf")], is_loud=True) as straight:
                headers = {"Authorization": f"Bearer {bare.KEY}"}
                text = [
                    ("gateway", completion(url, TOKENS)),
                    ("llama.cpp, logprobs", completion(straight.url, TOKENS, headers, TOP)),
                    ("llama.cpp, none", completion(straight.url, TOKENS, headers)),
                ]
                rows += overhead(live, text, rounds=rounds, seconds=seconds, slots=1)
        if "throughput" in only:
            with ExitStack() as inner:
                has_peer = importlib.util.find_spec("fastapi") is not None
                plain = inner.enter_context(running([bare.__file__, "fastapi"])) if has_peer else None
                rows += throughput(live, plain, rounds, seconds)
        if "overload" in only:
            rows += overload(
                live, "heavy net", infer_bytes(url, "heavy", HEAVY), rounds=rounds, seconds=seconds, slots=2
            )
            small = infer_bytes(url, "small", WIDTH)
            rows += overload(live, "small net", small, rounds=rounds, seconds=seconds, slots=64, has_goal=False)
    return rows + (drain(folder) if "drain" in only else [])


def show(rows: list[Row]) -> None:
    """Print the table."""
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.is_met]
        print(f"{row.what:34} {row.value:9.2f} {row.unit:13} {row.goal:28} {verdict:7} {row.detail}")


def main() -> int:
    """Measure and print; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a step of a round")
    parser.add_argument("--only", default="overhead,throughput,overload,drain")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    pin(CLIENT_CORE)()
    with tempfile.TemporaryDirectory(prefix="tersor-serving-") as folder:
        rows = measure(set(options.only.split(",")), options.rounds, options.seconds, Path(folder))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        show(rows)
    return int(any(row.is_met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
