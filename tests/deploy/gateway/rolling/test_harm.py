"""Candidates that say the right things, and fail, are slow, or have nobody to show it to."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from ..conftest import Live, live
from ..operating.orders import JSON, ordered, seen
from . import nets

TEXT = """
models:
  net:
    primary: old
    candidate: new
    variants:
      old: {{engine: onnxruntime, path: plain.onnx}}
      new: {{engine: onnxruntime, path: {candidate}}}
    limits: {{in_flight: 8, queue: 40, deadline_s: 20}}
    rollout:
      steps: [50, 100]
      shadow: 100
      shadow_time: {time}
      min_samples: {samples}
      min_time_s: 0.0
      look: 20
      agreement: {{good: 0.5, bad: 0.3, design: 0.2, safe_level: 0.2}}
      error_rate: {{margin: 0.3, safe_level: 0.2}}
      latency: {latency}
{more}"""


WIDE = "{tolerated: 2.0, harmful: 20.0, safe_level: 0.2}"
"""Limits of latency that a machine with other work keeps as well."""


@contextmanager
def rolling(
    folder: Path, candidate: str, more: str = "", *, samples: int = 20, share: float = 100, latency: str = WIDE
) -> Iterator[Live]:
    """A gateway with a candidate for the plain net."""
    nets.plain(folder / "plain.onnx")
    {"slow": nets.slow, "picky": nets.picky, "plain": nets.plain}[candidate](folder / "new.onnx")
    deployment = folder / "deploy.yaml"
    lines = "".join(f"      {line}\n" for line in more.splitlines())
    deployment.write_text(TEXT.format(candidate="new.onnx", samples=samples, time=share, latency=latency, more=lines))
    with live(deployment) as gateway:
        yield gateway


class Client:
    """Asks the net, and remembers what became of it."""

    def __init__(self, gateway: Live) -> None:
        self._connection = http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=60)
        self.gateway = gateway
        self.seen: Counter[tuple[int, str, str]] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, first: float) -> int:
        """Ask for the double of a row; a right answer counts by variant and reason of a fallback."""
        entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [first, 1, 2]}
        self._connection.request("POST", "/v2/models/net/infer", json.dumps({"inputs": [entry]}), JSON)
        response = self._connection.getresponse()
        told = json.loads(response.read())
        if response.status == 200:
            assert told["outputs"][0]["data"] == [2 * first, 2, 4]
        headers = response.headers
        self.seen[response.status, headers.get("X-Tersor-Variant", ""), headers.get("X-Tersor-Fallback", "")] += 1
        return response.status

    def ask_until(self, is_so: Callable[[dict[str, Any]], bool], firsts: tuple[float, ...]) -> dict[str, Any]:
        """Ask for these numbers in turn until the rollout is so."""
        end = time.monotonic() + 60
        while True:
            found: dict[str, Any] = seen(self.gateway, "net")["rollout"]
            if is_so(found):
                return found
            assert time.monotonic() < end, found
            for first in firsts:
                self.ask(first)


def test_a_candidate_that_refuses_what_the_control_takes_is_rolled_back_and_clients_get_the_answers(
    tmp_path: Path,
) -> None:
    with rolling(tmp_path, "picky") as gateway, Client(gateway) as client:
        client.ask_until(lambda found: found["state"] == "canary", (0, 1))
        found = client.ask_until(lambda found: found["state"] == "rolled_back", (0, 1, 0, 9, 1))
        assert "error_rate is harmful" in found["since"]["why"]
        assert {status for status, _, _ in client.seen} == {200}
        assert client.seen[200, "old", "refused"] >= 3
        assert client.seen[200, "new", ""] > 0
        before = sum(count for (_, variant, _), count in client.seen.items() if variant == "new")
        for _ in range(10):
            client.ask(9)
        assert sum(count for (_, variant, _), count in client.seen.items() if variant == "new") == before


def test_what_the_control_refuses_too_is_the_requests_fault(tmp_path: Path) -> None:
    with rolling(tmp_path, "plain", samples=100_000) as gateway:
        assert ordered(gateway, "promote", "net")[0] == 200
        wrong = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
        connection = http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v2/models/net/infer", json.dumps(wrong), JSON)
        assert connection.getresponse().status == 400
        connection.close()


def test_a_slow_candidate_is_rolled_back_for_its_latency(tmp_path: Path) -> None:
    narrow = "{tolerated: 1.2, harmful: 1.5, safe_level: 0.001}"
    with rolling(tmp_path, "slow", latency=narrow) as gateway, Client(gateway) as client:
        found = client.ask_until(lambda found: found["state"] in ("rolled_back", "promoted"), (0, 1))
        assert found["state"] == "rolled_back"
        assert "latency is harmful" in found["since"]["why"]
        assert [move["state"] for move in found["history"]] == ["created", "gated", "shadow", "canary", "rolled_back"]
        assert {status for status, _, _ in client.seen} == {200}
        assert client.seen[200, "new", ""] >= 20


def test_comparisons_take_no_more_of_the_time_than_they_may(tmp_path: Path) -> None:
    with rolling(tmp_path, "slow", samples=100_000, share=0.1) as gateway, Client(gateway) as client:
        client.ask(0)
        end = time.monotonic() + 30
        while seen(gateway, "net")["rollout"]["shadow"]["compared"] == 0:
            assert time.monotonic() < end
            time.sleep(0.05)
        for _ in range(100):
            client.ask(0)
        shadow = seen(gateway, "net")["rollout"]["shadow"]
        assert shadow["dropped"]["time"] > 50  # the next one may begin after a thousand times as long as one takes


def test_a_step_that_nobody_asks_pauses_and_is_never_promoted(tmp_path: Path) -> None:
    with rolling(tmp_path, "plain", "max_time_s: 1.0") as gateway, Client(gateway) as client:
        end = time.monotonic() + 30
        while (found := seen(gateway, "net")["rollout"])["state"] != "paused":
            assert found["state"] == "shadow"
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "0 of 20 samples" in found["since"]["why"]
        for _ in range(60):  # what it needs comes, and it stays paused until somebody says otherwise
            client.ask(0)
        time.sleep(1)
        assert seen(gateway, "net")["rollout"]["state"] == "paused"
        assert {variant for _, variant, _ in client.seen} == {"old"}
        assert ordered(gateway, "resume", "net")[1]["state"] == "shadow"
        client.ask_until(lambda found: found["state"] in ("canary", "promoted"), (0, 1))


def test_a_candidate_that_does_not_start_by_itself_waits_for_the_order(tmp_path: Path) -> None:
    with rolling(tmp_path, "plain", "starts: false") as gateway, Client(gateway) as client:
        for _ in range(30):
            client.ask(0)
        time.sleep(1)
        found = seen(gateway, "net")["rollout"]
        assert (found["state"], found["shadow"]["compared"], len(gateway.children())) == ("created", 0, 1)
        status, told = ordered(gateway, "start", "net")
        assert (status, told["state"], len(gateway.children())) == (200, "shadow", 2)
        assert seen(gateway, "net")["rollout"]["attempt"] == 1


@pytest.mark.parametrize("is_same", [False, True])
def test_another_file_in_the_same_place_inherits_no_promotion(tmp_path: Path, *, is_same: bool) -> None:
    with rolling(tmp_path, "plain", samples=100_000) as gateway:
        assert ordered(gateway, "promote", "net")[1]["state"] == "promoted"
        number = seen(gateway, "net")["rollout"]["id"]
        (tmp_path / "new.onnx").unlink()
        (nets.plain if is_same else nets.picky)(tmp_path / "new.onnx")
        assert ordered(gateway, "reload")[0] == 200
        end = time.monotonic() + 30
        # Until the new file's contents are known there is no rollout at all.
        while not is_same and (seen(gateway, "net")["rollout"] or {"state": ""})["state"] != "shadow":
            assert time.monotonic() < end
            time.sleep(0.05)
        found = seen(gateway, "net")["rollout"]
        assert (found["state"], found["id"] == number) == (("promoted", True) if is_same else ("shadow", False))
    with live(tmp_path / "deploy.yaml") as gateway, Client(gateway) as client:  # and so it is after a new start
        assert seen(gateway, "net")["rollout"]["id"] == found["id"]
        assert {client.ask(0) for _ in range(10)} == {200}
        assert client.seen == {(200, "new" if is_same else "old", ""): 10}


def test_a_file_that_was_rolled_back_and_mended_is_tried_anew(tmp_path: Path) -> None:
    with rolling(tmp_path, "picky") as gateway:
        assert ordered(gateway, "abort", "net")[1]["state"] == "rolled_back"
    nets.plain(tmp_path / "new.onnx")
    with live(tmp_path / "deploy.yaml") as gateway, Client(gateway) as client:
        found = client.ask_until(lambda found: found["state"] in ("promoted", "rolled_back"), (0, 1))
        assert (found["state"], found["attempt"]) == ("promoted", 1)
