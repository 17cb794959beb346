"""Does the gateway keep memory of requests? A long run of a mixed load, and the slope of what its processes hold.

Infers in bytes and JSON, completions, streams that are read to their end, requests that are refused: open loop. A
sample of the resident memory of the gateway and each engine every second; the slope is the median over all pairs of
samples after the first fifth. Goal: less than 1 MB in 100 000 requests. `--leak` serves a variant that keeps some
50 bytes of each request: the goal must then be missed, and the exit code is 0 where it is.

    python benchmarks/serving_soak.py [--minutes 10] [--rate 1000] [--leak] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from serving import artefacts, leaking
from serving.asking import TIMEOUT_S, Asked, completion, infer_bytes, infer_json
from serving.live import Live, gateway
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address
from tersor.deploy.load.generator import Answer, StepRecord, run_step, sender
from tersor.deploy.load.growth import growth
from tersor.deploy.load.schedule import Step
from tersor.deploy.load.work import chat_work, fixed_work

GOAL_MB, SAMPLE_S = 1.0, 1.0
DEPLOYMENT = (
    f"models:{artefacts.SMALL}"
    """
  demo:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: llama.cpp, path: small.gguf, context: 512}
      full: {engine: llama.cpp, path: full.gguf, context: 512}
    limits: {in_flight: 16, queue: 64}
"""
)
SHARES = {"bytes": 0.6, "JSON": 0.36, "completions": 0.01, "streams": 0.01, "refused": 0.02}
"""Of all requests."""


@dataclass(frozen=True)
class Row:
    """What one process did with its memory, MB."""

    process: str
    begin_mb: float
    end_mb: float
    slope_mb: float
    is_met: bool


def arms(url: str) -> dict[str, Asked]:
    """Return what is asked, in its kinds."""
    return {
        "bytes": infer_bytes(url, "small", artefacts.WIDTH),
        "JSON": infer_json(url, "small", artefacts.WIDTH),
        "completions": completion(url, 8),
        "streams": Asked(url, lambda address: chat_work(address, "demo", tokens=16)),
        "refused": Asked(url, lambda address: fixed_work(address, "/v2/models/small/infer", b'{"inputs": [1]}')),
    }


def resident(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def soaked(
    live: Live, rate: float, seconds: float
) -> tuple[list[int], dict[str, list[int]], dict[str, StepRecord]]:
    """Ask for so long, and return requests answered so far, memory of each process then, and the records."""
    address, counted, samples = Address.parse(live.url), 0, list[int]()
    pids = {"gateway": live.process.pid, **{f"engine {number}": pid for number, pid in enumerate(live.children())}}
    sizes: dict[str, list[int]] = {name: [] for name in pids}

    async def load(name: str, asked: Asked) -> StepRecord:
        client = Client(address, 64)
        await client.find()
        send = sender(client, asked.work(address))

        async def counting(index: int, deadline: float) -> Answer:
            nonlocal counted
            answer = await send(index, deadline)
            counted += 1
            return answer

        try:
            return await run_step(Step(rate * SHARES[name], seconds, "poisson"), counting, timeout_s=TIMEOUT_S)
        finally:
            await client.close()

    async def sampling() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            samples.append(counted)
            for name, pid in pids.items():
                sizes[name].append(resident(pid))
            await asyncio.sleep(SAMPLE_S)

    asked = arms(live.url)
    sampler = asyncio.create_task(sampling())
    records = await asyncio.gather(*(load(name, one) for name, one in asked.items()))
    await sampler
    return samples, sizes, dict(zip(asked, records, strict=True))


def main() -> int:
    """Run, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second, of all kinds together")
    parser.add_argument("--leak", action="store_true", help="serve a variant that leaks")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tersor-soak-") as name:
        artefacts.net(Path(name) / "small.onnx")
        artefacts.language(Path(name))
        command = (leaking.__file__,) if options.leak else ("-m", "tersor", "serve")
        with gateway(DEPLOYMENT, Path(name), core=None, command=command) as live:
            samples, sizes, records = asyncio.run(soaked(live, options.rate, 60 * options.minutes))
    rows = []
    for process, held in sizes.items():
        slope = growth(samples, held) * 100_000 / 1e6
        rows.append(Row(process, held[0] / 1e6, held[-1] / 1e6, slope, slope < GOAL_MB))
    statuses = {kind: dict(record.statuses) | dict(record.errors) for kind, record in records.items()}
    if options.json:
        print(
            json.dumps({"requests": samples[-1], "rows": [asdict(row) for row in rows], "answers": statuses}, indent=1)
        )
    else:
        for row in rows:
            verdict = "met" if row.is_met else "MISSED"
            print(f"{row.process:10} {row.begin_mb:7.1f} → {row.end_mb:7.1f} MB, "
                  f"{row.slope_mb:+7.3f} MB in 100 000 requests (goal < {GOAL_MB:g}) {verdict}")  # fmt: skip
        print(f"{samples[-1]} requests: {statuses}")
    if options.leak:
        return int(rows[0].is_met)  # the gateway's own
    return int(not all(row.is_met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
