"""Traffic for a rollout, and deployments that have one."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ..conftest import Live
from ..operating.orders import JSON, seen

QUICK = """
models:
  demo:
    primary: old
    candidate: new
    variants:
      old: {{engine: llama.cpp, path: full.gguf, context: 512}}
      new: {{engine: llama.cpp, path: {candidate}, context: 512}}
    limits: {{in_flight: 8, queue: 40, deadline_s: 20}}
    rollout:
      steps: {steps}
      shadow: {shadow}
      shadow_time: 100
      min_samples: {samples}
      min_time_s: 0.0
      look: 20
      agreement: {{good: 0.97, bad: 0.92, design: 0.8, safe_level: 0.2}}
      error_rate: {{margin: 0.3, safe_level: 0.2}}
      latency: {{tolerated: 3.0, harmful: 30.0, safe_level: 0.2}}
"""
PROMPTS = ("def add(", "import os\n", "class A:\n", "for i in ", "return x", "if a == b:\n", "x = [", "print(")


def text(candidate: str = "good.gguf", *, steps: str = "[50, 100]", samples: int = 20, shadow: float = 100) -> str:
    """A deployment."""
    return QUICK.format(candidate=candidate, steps=steps, samples=samples, shadow=shadow)


class Client:
    """Asks one request after the other, and remembers who answered."""

    def __init__(self, gateway: Live) -> None:
        self._connection = http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=60)
        self.number = 0
        self.statuses: Counter[int] = Counter()
        self.variants: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, headers: dict[str, str] | None = None, **more: object) -> tuple[int, dict[str, Any], str]:
        """Status, JSON and variant of one answer."""
        prompt = PROMPTS[self.number % len(PROMPTS)] + f"a{self.number} "
        self.number += 1
        body = {"model": "demo", "prompt": prompt, "max_tokens": 6, "temperature": 0, **more}
        self._connection.request("POST", "/v1/completions", json.dumps(body), {**JSON, **(headers or {})})
        response = self._connection.getresponse()
        found = json.loads(response.read())
        variant = response.headers.get("X-Tersor-Variant", "")
        self.statuses[response.status] += 1
        self.variants[variant] += 1
        return response.status, found, variant

    def ask_until(self, gateway: Live, is_so: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """Ask until the rollout is so; return what is seen of it then."""
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = seen(gateway)["rollout"]
            if is_so(found):
                return found
            assert time.monotonic() < deadline, found
            for _ in range(4):
                self.ask()


def state_is(*states: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a rollout is in one of these states."""
    return lambda found: found["state"] in states


def kept(folder: Path) -> dict[str, Any]:
    """What the file of rollouts in a folder says of the model."""
    files = list(folder.glob("*.rollouts.json"))
    assert len(files) == 1
    found: dict[str, Any] = json.loads(files[0].read_text())["models"]["demo"]
    return found
