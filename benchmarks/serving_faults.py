"""What do clients see while engines die, hang, lie, run out of room? Faults in a live gateway under load.

For each fault a gateway with a quantized and a full-precision variant, of the embedded language model and of a small
net, is asked at a steady rate, open loop, and the fault injected some seconds after the start:

  requests   sent from the injection on
  failed     of these, that full precision could have answered: no status 200, or a net's answer that is wrong. Goal: 0
  by full    that full precision answered
  fallback   seconds from the injection to the first of them
  recovery   seconds to the first answer of the quantized variant after these; – where it never is well again

    python benchmarks/serving_faults.py [--only killed,hung,…] [--rounds 1] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from serving import artefacts, jumping
from serving.asking import numbers
from serving.live import Live, gateway
from tersor.deploy.load.generator import Answer, run_step
from tersor.deploy.load.schedule import Step

WIDTH = artefacts.WIDTH
TEXTS, TENSORS = 12.0, 40.0
"""Requests a second of each kind."""
BEFORE_S = 2.0
DEPLOYMENT = """
models:
  demo:
    primary: quantized
    fallback: full
    variants:
      quantized: {{engine: llama.cpp, path: {text}, context: 512}}
      full: {{engine: llama.cpp, path: full.gguf, context: 512}}
    limits: {{in_flight: 64, queue: 256, deadline_s: 8}}
  small:
    primary: quantized
    fallback: full
    variants:
      quantized: {{engine: onnxruntime, path: {net}}}
      full: {{engine: onnxruntime, path: full.onnx}}
    limits: {{in_flight: 64, queue: 256, deadline_s: 8}}
"""
QUANTIZED, FULL = ("small.gguf", "small.onnx"), ("full.gguf", "full.onnx")


HEADS = f"{'fault':22} {'requests':>8} {'failed':>6} {'goal 0':6} {'by full':>7} {'fallback':>8} {'recovery':>8}"


@dataclass(frozen=True)
class Fault:
    """How one is made.

    inject   what is done to a live gateway; None: it is there from the start
    again_s  seconds after which it is done once more, 0 for never
    seconds  from the first time on
    text, net  artefacts of the quantized variants
    command  what serves instead of `tersor serve`
    """

    name: str
    inject: Callable[[Live], None] | None = None
    seconds: float = 10.0
    again_s: float = 0.0
    text: str = QUANTIZED[0]
    net: str = QUANTIZED[1]
    command: tuple[str, ...] = ("-m", "tersor", "serve")


def to_engines(files: tuple[str, ...], act: Callable[[int], None]) -> Callable[[Live], None]:
    """Return what does something to the engines that have loaded `files`."""

    def inject(live: Live) -> None:
        for name in files:
            with contextlib.suppress(LookupError, ProcessLookupError):  # it may be on its way back
                act(live.engine(name))

    return inject


def starve(pid: int) -> None:
    """Leave a process no memory beyond what it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    room = pages * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (room, room))


def fill_disk(live: Live) -> None:
    """Let the gateway, its engines and those to come write no byte into files; then they have to be started again."""
    for pid in (live.process.pid, *live.children()):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
    to_engines(QUANTIZED, lambda pid: os.kill(pid, signal.SIGKILL))(live)


def send_signal(number: int) -> Callable[[int], None]:
    """Return what sends it."""
    return lambda pid: os.kill(pid, number)


FAULTS = (
    Fault("none", lambda _: None, 6),
    Fault("killed", to_engines(QUANTIZED, send_signal(signal.SIGKILL)), 14, again_s=4),
    Fault("hung", to_engines(QUANTIZED, send_signal(signal.SIGSTOP)), 40),
    Fault("NaN weights", net="nan.onnx"),
    Fault("garbling variant", text="garbage.gguf"),
    Fault("out of memory", to_engines(QUANTIZED, starve), 14),
    Fault("full disk", fill_disk, 14),
    Fault("full precision hung", to_engines(FULL, send_signal(signal.SIGSTOP)), 24),
    Fault("full precision killed", to_engines(FULL, send_signal(signal.SIGKILL)), 10, again_s=3),
    Fault("clock jumps", lambda _: None, 10, command=(jumping.__file__,)),
)


@dataclass(frozen=True)
class Seen:
    """One answer, seconds on the loop's clock."""

    model: str
    sent: float
    ended: float
    status: int
    variant: str
    is_right: bool
    reason: str


@dataclass
class Row:
    """One line of the table; seconds are None where it did not come about."""

    fault: str
    requests: int = 0
    failed: int = 0
    by_full: int = 0
    fallback_s: float | None = None
    recovery_s: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)


class Asker:
    """Sends one kind of request, a connection each, and keeps what became of it."""

    def __init__(self, url: str, model: str, seen: list[Seen]) -> None:
        self.place, self.model, self.seen = urlsplit(url), model, seen
        self.row = np.asarray([numbers(WIDTH)], np.float32)
        self.right = self.row @ artefacts.weights(WIDTH)

    def request(self, index: int) -> bytes:
        """Return the bytes of a request."""
        if self.model == "demo":
            path, body = "/v1/completions", {"prompt": "def f(", "max_tokens": 24, "temperature": 1, "seed": index}
            text = json.dumps({"model": "demo", **body})
        else:
            path = f"/v2/models/{self.model}/infer"
            data = self.row.ravel().tolist()
            text = json.dumps({"inputs": [{"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": data}]})
        head = f"POST {path} HTTP/1.1\r\nHost: {self.place.netloc}\r\nConnection: close\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()

    async def send(self, index: int, deadline: float) -> Answer:
        """As `run_step` wants it."""
        loop = asyncio.get_running_loop()
        began, status, fields, body, error = loop.time(), 0, dict[str, str](), b"", ""
        try:
            async with asyncio.timeout_at(deadline):
                reader, writer = await asyncio.open_connection(self.place.hostname, self.place.port)
                writer.write(self.request(index))
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
                writer.close()
            first, *lines = head.decode().split("\r\n")
            status = int(first.split()[1])
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        except (TimeoutError, OSError, ValueError, IndexError) as problem:
            error = type(problem).__name__
        variant = fields.get("x-tersor-variant", "")
        reason = fields.get("x-tersor-fallback", "") or error or ("" if status == 200 else body.decode()[:90])
        is_right = status == 200 and self.is_right(json.loads(body))
        self.seen.append(Seen(self.model, began, loop.time(), status, variant, is_right, reason))
        return Answer(begun=began, ended=loop.time(), status=status, error="reset" if error else "")

    def is_right(self, made: dict[str, list[dict[str, list[float]]]]) -> bool:
        """Whether a net answered what it should; texts are as they are."""
        return self.model == "demo" or bool(np.allclose(made["outputs"][0]["data"], self.right.ravel(), atol=1e-4))


async def under_load(live: Live, fault: Fault) -> tuple[float, list[Seen]]:
    """Ask for as long as the fault says, and return when it was injected and all answers."""
    seen: list[Seen] = []
    loop, total = asyncio.get_running_loop(), BEFORE_S + fault.seconds
    moments: list[float] = []

    async def injecting() -> None:
        await asyncio.sleep(BEFORE_S)
        end = loop.time() + fault.seconds / 2
        while True:
            moments.append(loop.time())
            if fault.inject is not None:
                fault.inject(live)
            if not fault.again_s or loop.time() + fault.again_s > end:
                return
            await asyncio.sleep(fault.again_s)

    await asyncio.gather(
        injecting(),
        run_step(Step(TEXTS, total), Asker(live.url, "demo", seen).send, timeout_s=20),
        run_step(Step(TENSORS, total), Asker(live.url, "small", seen).send, timeout_s=20),
    )
    return moments[0] if fault.inject is not None else 0.0, seen


def judged(name: str, injected: float, seen: list[Seen]) -> Row:
    """Make a line of the table of what was seen."""
    after = sorted((one for one in seen if one.ended >= injected), key=lambda one: one.ended)
    row = Row(name, len(after), sum(not one.is_right for one in after))
    full = [one for one in after if one.variant == "full" and one.reason not in ("", "low margin")]
    row.by_full = sum(one.variant == "full" for one in after)
    if full:
        begin = injected or min(one.sent for one in after)
        row.fallback_s = full[0].ended - begin
        back = [_back(after, model, begin) for model in {one.model for one in full}]
        row.recovery_s = None if None in back else max(one for one in back if one is not None)
    for one in after:
        if one.reason:
            row.reasons[one.reason] = row.reasons.get(one.reason, 0) + 1
    return row


def _back(after: list[Seen], model: str, begin: float) -> float | None:
    """Seconds until a model's quantized variant answered for good; None where full precision did to the end."""
    ours = [one for one in after if one.model == model and one.reason != "low margin"]
    last = max(number for number, one in enumerate(ours) if one.variant == "full")
    return ours[last + 1].ended - begin if last + 1 < len(ours) else None


def measure(fault: Fault, folder: Path) -> Row:
    """Run one fault."""
    text = DEPLOYMENT.format(text=fault.text, net=fault.net)
    with gateway(text, folder, core=None, command=fault.command) as live:
        injected, seen = asyncio.run(under_load(live, fault))
        return judged(fault.name, injected, seen)


def show(row: Row) -> None:
    """Print one line."""
    seconds = [f"{value:8.2f}" if value is not None else "       –" for value in (row.fallback_s, row.recovery_s)]
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(row.reasons.items(), key=lambda one: -one[1]))
    verdict = "met" if not row.failed else "MISSED"
    counts = f"{row.fault:22} {row.requests:8} {row.failed:6} {verdict:6} {row.by_full:7}"
    print(counts, *seconds, "", reasons, flush=True)


def main() -> int:
    """Run all and print the table; exit code 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(fault.name for fault in FAULTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="tersor-faults-") as name:
        folder = Path(name)
        artefacts.net(folder / "small.onnx")
        artefacts.net(folder / "full.onnx")
        artefacts.net(folder / "nan.onnx", broken=True)
        artefacts.language(folder)
        if not options.json:
            print(HEADS)
        for _ in range(options.rounds):
            for fault in FAULTS:
                if fault.name in options.only.split(","):
                    rows.append(measure(fault, folder))
                    if not options.json:
                        show(rows[-1])
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
