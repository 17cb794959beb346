"""LOADTEST: send requests to a server at a rate that it does not set, and say what became of them."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Outcome
from tersor.deploy.load.client import Client, tls_context
from tersor.deploy.load.exchange import Address
from tersor.deploy.load.generator import LoadProgress, StepRecord, run_step, sender
from tersor.deploy.load.question import Question, work_of
from tersor.deploy.load.schedule import Arrivals, Step, steps_of
from tersor.deploy.load.summary import StepResult, summarize
from tersor.deploy.load.work import Work
from tersor.pipeline.steps import provenance

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

__all__ = ["LoadTest", "loadtest"]

SPARE_FILES = 64
"""Open files that are left for everything but connections."""
INDEPENDENT = (
    "intervals take requests as independent; those that wait in the same queue are not, which makes them too narrow"
)


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One run against one server.

    server    its address, without what may follow a "?"
    work      what was asked of it
    settings  what shaped the numbers
    steps     a result for each rate, in the order of the run
    """

    server: str
    work: str
    settings: Mapping[str, str | int | float | bool]
    steps: tuple[StepResult, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    command: str = ""
    date: str = ""

    @property
    def outcome(self) -> Outcome | None:
        """Over all steps: "fail" if one broke a limit or got no answer, else "inconclusive" if one was not clear."""
        limits = [limit.outcome for step in self.steps for limit in step.limits]
        if "fail" in limits or any(step.is_unanswered for step in self.steps):
            return "fail"
        if "inconclusive" in limits or any(step.invalid for step in self.steps):
            return "inconclusive"
        return "pass" if limits else None


def loadtest(
    url: str,
    question: Question | None = None,
    *,
    rates: Sequence[float] = (50.0,),
    seconds: float = 30.0,
    arrivals: Arrivals = "constant",
    seed: int = 0,
    warmup: float = 0.0,
    ca: str | Path | None = None,
    connections: int = 512,
    timeout_s: float = 10.0,
    within_ms: float | None = None,
    max_p99_ms: float | None = None,
    min_goodput: float | None = None,
    command: str = "",
    progress: LoadProgress | None = None,
) -> LoadTest:
    """Ask the server at `url` at each of `rates` for `seconds`, and return what became of the requests.

    question     what to ask; None: a GET of the address
    rates        requests per second, one after another; each waits for the answers to the one before
    arrivals     "constant", or "poisson": random gaps of `seed`
    warmup       seconds at the first rate that are not counted, 0 for none
    ca           file of certificates that an https server may be signed by; None: those of the system
    connections  open at once, at most
    timeout_s    for one request, from its intended start to the last byte
    within_ms    answers that took longer do not count for the goodput; None: all that came in time
    max_p99_ms, min_goodput   limits for every step

    What a server does wrong is counted and never raised. Raises SchemeError for options that make no sense,
    MissingError for an absent file, EngineError for a host that cannot be found or does not tell what must be known.
    """
    began = time.perf_counter()
    _check_limits(within_ms, max_p99_ms, min_goodput)
    _check_run(connections, timeout_s)
    address = Address.parse(url)
    steps = steps_of(tuple(rates), seconds, arrivals, seed)
    run = _Run(address, question or Question(), steps, connections, timeout_s, within_ms, max_p99_ms, min_goodput)
    context = tls_context(None if ca is None else Path(ca).expanduser()) if address.is_secure else None
    before = Step(steps[0].rate, warmup, arrivals, seed) if warmup else None
    work, results = asyncio.run(run.results(context, before, progress))
    return LoadTest(
        server=f"{'https' if address.is_secure else 'http'}://{address.authority}{address.path}",
        work=work.name,
        settings={"arrivals": arrivals, "seed": seed, "warmup_s": warmup, **run.settings()},
        steps=results,
        notes=(*work.notes, *(note for step in results for note in step.notes), INDEPENDENT),
        seconds=time.perf_counter() - began,
        versions=provenance.versions(),
        machine=provenance.machine(),
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What `loadtest` was given, checked."""

    address: Address
    question: Question
    steps: tuple[Step, ...]
    connections: int
    timeout_s: float
    within_ms: float | None
    max_p99_ms: float | None
    min_goodput: float | None

    async def results(
        self, context: ssl.SSLContext | None, before: Step | None, progress: LoadProgress | None
    ) -> tuple[Work, tuple[StepResult, ...]]:
        """Run all steps, after the uncounted one `before` them."""
        client, found, sent = Client(self.address, self.connections, context), [], 0
        within_s = None if self.within_ms is None else self.within_ms / 1000
        await client.find()
        try:
            work = await work_of(self.question, client, self.address, self.timeout_s)
            send = sender(client, work)
            for step in (*([before] if before else []), *self.steps):
                record = await run_step(
                    step, send, timeout_s=self.timeout_s, within_s=within_s, first=sent, progress=progress
                )
                sent += record.requests
                if step is not before:
                    found.append(self._judged(record))
        finally:
            await client.close()
        return work, tuple(found)

    def _judged(self, record: StepRecord) -> StepResult:
        return summarize(record, connections=self.connections, max_p99_ms=self.max_p99_ms, min_goodput=self.min_goodput)

    def settings(self) -> dict[str, str | int | float | bool]:
        """Return what shaped the numbers."""
        found: dict[str, str | int | float | bool] = {
            "rates": ",".join(f"{step.rate:g}" for step in self.steps),
            "seconds": self.steps[0].seconds,
            "connections": self.connections,
            "timeout_s": self.timeout_s,
        }
        return found if self.within_ms is None else {**found, "within_ms": self.within_ms}


def _check_run(connections: int, timeout_s: float) -> None:
    if connections < 1:
        raise SchemeError(f"connections must be at least 1, got {connections}")
    if resource is not None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY and connections > files - SPARE_FILES:
            raise SchemeError(
                f"{connections} connections need more than the {files} files that this process may open: take at most "
                f"{files - SPARE_FILES}, or raise it with ulimit -n"
            )
    if not 0 < timeout_s <= 3600:
        raise SchemeError(f"a timeout is more than 0 and at most 3600 seconds, got {timeout_s:g}")


def _check_limits(within_ms: float | None, max_p99_ms: float | None, min_goodput: float | None) -> None:
    for name, value in (("within_ms", within_ms), ("max_p99_ms", max_p99_ms)):
        if value is not None and not value > 0:
            raise SchemeError(f"{name} is a time in milliseconds above 0, got {value:g}")
    if min_goodput is not None and not 0 <= min_goodput <= 1:
        raise SchemeError(f"min_goodput is a share from 0 to 1, got {min_goodput:g}")
