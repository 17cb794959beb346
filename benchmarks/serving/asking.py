"""Requests to a live server, sent by the generator of `tersor loadtest`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.live import Live
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address, request_bytes
from tersor.deploy.load.generator import Send, StepRecord, run_step, sender
from tersor.deploy.load.schedule import Step
from tersor.deploy.load.work import Work, fixed_work, tensors_work

TIMEOUT_S = 30.0
HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Asked:
    """Where, and what."""

    url: str
    work: Callable[[Address], Work]


def numbers(width: int) -> list[float]:
    """Return the input of all requests, one row."""
    return [round(value, 4) for value in np.random.default_rng(0).standard_normal(width).tolist()]


def infer_json(url: str, model: str, width: int, path: str = "") -> Asked:
    """Ask a net for one row, in JSON; at `path`, where it is not that of the protocol."""
    entry = {"name": "x", "shape": [1, width], "datatype": "FP32", "data": numbers(width)}
    body = json.dumps({"inputs": [entry]}).encode()
    if path:
        headers = {"Content-Type": "application/json"}
        return Asked(url, lambda address: fixed_work(address, path, body, headers))
    return Asked(url, lambda address: tensors_work(address, model, [body]))


def infer_bytes(url: str, model: str, width: int, path: str = "") -> Asked:
    """Ask for the same in bytes behind a little JSON."""
    data = np.asarray(numbers(width), np.float32).tobytes()
    entry = {"name": "x", "shape": [1, width], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {HEADER: str(len(text)), "Content-Type": "application/octet-stream"}
    place = path or f"/v2/models/{model}/infer"
    return Asked(url, lambda address: fixed_work(address, place, text + data, headers))


def completion(url: str, tokens: int, headers: Mapping[str, str] = {}, logprobs: int | None = None) -> Asked:
    """Ask for texts, each with a seed of its own: greedy answers of a small model loop, which is a fault."""
    more = {} if logprobs is None else {"logprobs": logprobs}

    def work(address: Address) -> Work:
        def wire(index: int) -> bytes:
            body = {"model": "demo", "prompt": "def f(", "max_tokens": tokens, "temperature": 1, "seed": index, **more}
            return request_bytes(
                address, "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
            )

        return Work("completions", wire, fixed_work(address, "/v1/completions").reading)

    return Asked(url, work)


async def sent(
    asked: Asked | Send, rate: float, seconds: float, *, connections: int = 512, first: int = 0
) -> StepRecord:
    """Send at a rate, open loop. What is called instead of asked over HTTP answers in this process."""
    step = Step(rate, seconds)
    if not isinstance(asked, Asked):
        return await run_step(step, asked, timeout_s=TIMEOUT_S, first=first)
    address = Address.parse(asked.url)
    client = Client(address, connections)
    await client.find()
    try:
        return await run_step(step, sender(client, asked.work(address)), timeout_s=TIMEOUT_S, first=first)
    finally:
        await client.close()


@dataclass(frozen=True)
class Capacity:
    """Right answers a second that passes, and a second of processor that the server takes."""

    rate: float
    by_processor: float


def capacities(
    arms: Sequence[tuple[Live, Asked]], rounds: int, seconds: float, connections: int
) -> list[list[Capacity]]:
    """Return what each arm can do in each round, arms in turn.

    As many requests are at hand as `connections` can carry, and more: the server never waits for the client.
    """
    guesses = [_first_guess(asked, connections) for _, asked in arms]
    found: list[list[Capacity]] = [[] for _ in arms]
    for index in range(rounds):
        for place, (live, asked) in enumerate(arms):
            before = live.processor_s()
            record = asyncio.run(
                sent(asked, 4 * guesses[place], seconds / 4, connections=connections, first=index * 100_000)
            )
            guesses[place] = record.good / record.ended
            spent = live.processor_s() - before
            found[place].append(Capacity(guesses[place], record.good / spent if spent else float("nan")))
    return found


def _first_guess(asked: Asked, connections: int) -> float:
    """Return about what a server can do: ever more, until it is late."""
    rate = 100.0
    while True:
        record = asyncio.run(sent(asked, rate, max(0.1, 50 / rate), connections=connections))
        if record.good / record.ended < 0.7 * rate:
            return record.good / record.ended
        rate *= 3
