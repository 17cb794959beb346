"""Record docs/how-to/report-example.md: what `tersor report` says of two minutes of a real gateway.

What: serves the embedded model (four bits, 16-bit floats behind it, six bits as a candidate), asks it to go on with
pieces of its held-out text, says of each answer whether the next characters were right, rolls back and restores, kills
the primary's engine once, and reports what is in the record then.

Why: the page shows what a report is; its numbers have to be those of a run.

How: on a machine with two processors, in about two minutes:

    python tools/make_report_example.py
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tersor import reference_model
from tersor.pipeline.deploy.report import report_on, written

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "report-example.md"
DEPLOYMENT = """
models:
  code:
    primary: q4
    fallback: full
    candidate: q6
    variants:
      q4: {engine: llama.cpp, embedded: q4_k_m, context: 512}
      q6: {engine: llama.cpp, embedded: q6_k, context: 512}
      full: {engine: llama.cpp, embedded: f16, context: 512}
    limits: {in_flight: 4, queue: 8, deadline_s: 20}
    rollout:
      steps: [25, 100]
      shadow: 100
      min_samples: 60
      min_time_s: 5.0
      starts: false
      agreement: {good: 0.97, bad: 0.90, design: 0.85}
monitor: {limits: {EngineRestarts: 0.5, LowAccuracy: 0.2}}
"""
INTRODUCTION = """\
# A report as it is printed

`tools/make_report_example.py` wrote this page: two minutes of the embedded model on two shared processors, asked by two
clients, one of which streams, to go on with its held-out text, with labels that say whether the next character was
right. Meanwhile it was rolled back and restored, its engine was killed once, and a candidate was tried. What each part
means: [report on a deployment](report-on-a-deployment.md).

"""


def asked(address: str, path: str, body: object) -> Any:
    """Return the answer to a request as parsed JSON, that to a stream with all text in one; None for any but 200."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            return None
        if not response.getheader("content-type", "").startswith("text/event-stream"):
            return json.loads(content)
        parts = [json.loads(line[6:]) for line in content.splitlines() if line.startswith(b"data: {")]
        parts = [part for part in parts if part.get("choices")]
        text = "".join(part["choices"][0]["text"] for part in parts)
        return {"id": parts[0]["id"], "choices": [{"text": text}]} if parts else None
    finally:
        connection.close()


def ask(address: str, text: str, seed: int, until: threading.Event) -> None:
    """Ask and judge until it is enough; each client takes other places of the text."""
    chance, number = random.Random(seed), 0
    while not until.is_set():
        at, number = chance.randrange(200, len(text) - 200), number + 1
        body = {"model": "code", "prompt": text[at - 200 : at], "max_tokens": 8, "temperature": 0}
        found = asked(address, "/v1/completions", {**body, "user": f"{seed}-{number}", "stream": seed == 1})
        if found is not None:
            is_right = found["choices"][0]["text"][:1] == text[at]
            asked(address, "/v1/feedback", {"id": found["id"], "right": is_right})
        time.sleep(0.05)


def order(address: str, action: str, why: str) -> None:
    """Have something done, as an operator does."""
    assert asked(address, "/v1/rollout", {"action": action, "model": "code", "why": why}), action


def engine_of(gateway: int, artefact: str) -> int:
    """Return the process that runs an artefact."""
    children = Path(f"/proc/{gateway}/task/{gateway}/children").read_text(encoding="ascii").split()
    for child in children:
        maps = Path(f"/proc/{child}/maps").read_text(encoding="utf-8", errors="replace")
        if artefact in maps:
            return int(child)
    return int(children[0])


def main() -> None:
    """Serve, ask, befall, report."""
    text = (Path(reference_model.__file__).parent / "held_out.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "deploy.yaml"
        place.write_text(DEPLOYMENT, encoding="utf-8")
        command = [sys.executable, "-m", "tersor", "serve", str(place), "--port", "0", "--who", "ann"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            until = threading.Event()
            clients = [threading.Thread(target=ask, args=(address, text, seed, until)) for seed in (1, 2)]
            for client in clients:
                client.start()
            time.sleep(30)
            order(address, "rollback", "look at full precision for a moment")
            time.sleep(20)
            order(address, "restore", "it is as it should be")
            time.sleep(10)
            os.kill(engine_of(process.pid, "embedded-q4_k_m"), signal.SIGKILL)
            time.sleep(10)
            order(address, "start", "six bits may be nearer")
            time.sleep(45)
            until.set()
            for client in clients:
                client.join()
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        report = written(report_on(place), ".md")
    OUTPUT.write_text(INTRODUCTION + report.replace("# Report", "## Report", 1), encoding="utf-8")
    sys.stdout.write(f"wrote {OUTPUT}\n")


if __name__ == "__main__":
    main()
