"""`tersor demo rollout` as one call: two candidates for the embedded model, a good one and one that must not serve.

A gateway serves full precision; clients ask it all the time. The good candidate is compared in the shadow, answers a
growing share of requests and is promoted; it then is the primary, with full precision behind it, and the bad candidate
is tried in the same way. Nothing is played: what the tests find is what is told, and nobody waits for a result.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tersor import reference_model
from tersor.core.errors import EngineError, SchemeError
from tersor.core.records import to_json_text
from tersor.deploy.gateway.rolling.keeping import RolloutFile
from tersor.deploy.gateway.rolling.progress import Progress
from tersor.deploy.rollout.decision import Decision, replayed
from tersor.models import load
from tersor.pipeline.deploy.demo.child import Child, serving
from tersor.pipeline.deploy.demo.traffic import Traffic
from tersor.pipeline.quantize import Progress as Told
from tersor.pipeline.quantize import quantize

__all__ = ["BAD", "GOOD", "Candidate", "RolloutDemo", "Step", "rollout_demo"]

GOOD, BAD, FULL, MODEL = "q8_0", "q2_k", "f16", "demo"
SHARES = (20.0, 50.0, 100.0)
CLIENTS, IDLE_PAUSE_S, POLL_S, PATIENCE_S = 3, 0.25, 0.2, 600.0
ENDS = ("promoted", "rolled_back", "paused")
PARTS = 1000
"""Of a state, for a bar of progress."""
# The embedded model has 4 million weights and is sure of little: even in 8 bits it names another next token than full
# precision 11 times in 1000. The usual limits (99 and 97 %) are for models that are sure. Those of latency are wide,
# for a machine that does other things as well must not decide.
DEPLOYMENT = """\
keys:
  - {{name: demo, sha256: {digest}, per_minute: 1000000, admin: true}}
models:
  {model}:
    primary: {primary}
{fallback}    candidate: {candidate}
    variants:
{variants}
    limits: {{in_flight: 8, queue: 32, deadline_s: 30}}
    rollout:
      steps: {shares}
      shadow: 100
      shadow_time: 100
      min_samples: {samples}
      min_time_s: 2.0
      max_time_s: {patience}
      agreement: {{good: 0.97, bad: 0.93, design: 0.87}}
      error_rate: {{margin: 0.01}}
      latency: {{tolerated: 1.5, harmful: 3.0}}
"""


@dataclass(frozen=True, slots=True)
class Step:
    """A move of a rollout, as its gateway wrote it down.

    after_s   since the demo began
    weight    share of requests that the candidate answers from now on, 0 … 1
    decision  that made it, decided again from its record; None: a move that needed none
    record    of the decision, as `rollout.decision.replayed` takes it
    path      of the file with that record; None: nothing is kept
    """

    candidate: str
    after_s: float
    state: str
    weight: float
    why: str
    decision: Decision | None
    record: Mapping[str, Any] | None
    path: Path | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """What became of one candidate.

    answered  requests that it answered, as the clients saw it
    """

    format: str
    outcome: str
    expected: str
    seconds: float
    answered: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class RolloutDemo:
    """All that the clients saw; times in seconds, `answered` by variant, `errors` by kind."""

    candidates: tuple[Candidate, ...]
    requests: int
    answered: Mapping[str, int]
    errors: Mapping[str, int]
    p50_s: float
    p99_s: float
    seconds: float

    @property
    def is_as_expected(self) -> bool:
        """Whether the good one was promoted, the bad one rolled back, and no client saw an error."""
        return not self.errors and all(one.outcome == one.expected for one in self.candidates)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A candidate that will be tried, and beside what."""

    candidate: str
    primary: str
    expected: Literal["promoted", "rolled_back"]


TRIALS = (_Trial(GOOD, FULL, "promoted"), _Trial(BAD, GOOD, "rolled_back"))


def rollout_demo(
    folder: Path,
    *,
    samples: int = 150,
    seed: int = 0,
    is_kept: bool = False,
    opened: Callable[[str, str], None],
    tell: Callable[[Step], None],
    ended: Callable[[RolloutDemo], None],
    progress: Told,
) -> None:
    """Run both rollouts in `folder`, which is made if need be: artefacts, deployment, log and records stay in it.

    samples   that a step needs at least
    seed      of the prompts
    is_kept   the gateway and its clients go on after the end, until they are interrupted
    opened    is told the address of the gateway and its key, once it answers
    tell      is told each move as it comes
    ended     is told the outcome, before the gateway ends
    progress  is told how far it is
    Raises EngineError where the gateway does not start or the tests do not settle in ten minutes, SchemeError for a
    folder that is not empty, KeyboardInterrupt where a signal ends it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SchemeError(f"{folder}: something lies there already; give a new folder, so that nothing is overwritten")
    source = load(reference_model.PATH)
    for name in (FULL, GOOD, BAD):
        quantize(source, name, folder / f"{name}.gguf", command="tersor demo rollout")
    demo = _Demo(folder, samples, seed, tell, progress)
    try:
        asyncio.run(demo.run(opened, ended, is_kept=is_kept))
    except asyncio.CancelledError:  # by a signal that is no Ctrl-C
        raise KeyboardInterrupt from None


class _Demo:
    """One run."""

    def __init__(self, folder: Path, samples: int, seed: int, tell: Callable[[Step], None], progress: Told) -> None:
        self._folder, self._samples, self._seed = folder, samples, seed
        self._tell, self._progress = tell, progress
        self._key, self._began = secrets.token_urlsafe(24), time.monotonic()
        self._file = folder / "deploy.yaml"
        self._decisions = 0

    async def run(
        self, opened: Callable[[str, str], None], ended: Callable[[RolloutDemo], None], *, is_kept: bool
    ) -> None:
        with _ended_by_signals():
            self._deploy(TRIALS[0])
            async with serving(self._file, self._folder / "gateway.log") as child:
                opened(child.address, self._key)
                traffic = Traffic(child.address, MODEL, self._key, self._seed)
                async with traffic.flowing(CLIENTS):
                    found = []
                    for number, trial in enumerate(TRIALS):
                        if number:
                            self._deploy(trial)
                            child.reload()
                        found.append(await self._watched(number, trial, traffic, child))
                    ended(self._outcome(tuple(found), traffic))
                    if is_kept:
                        traffic.pause_s = IDLE_PAUSE_S
                        with contextlib.suppress(asyncio.CancelledError):  # that is how it is meant to end
                            await child.process.wait()

    def _deploy(self, trial: _Trial) -> None:
        fallback = "" if trial.primary == FULL else f"    fallback: {FULL}\n"
        names = dict.fromkeys((trial.primary, FULL, trial.candidate))
        variants = (f"      {name}: {{engine: llama.cpp, path: {name}.gguf, context: 512}}" for name in names)
        text = DEPLOYMENT.format(
            digest=hashlib.sha256(self._key.encode()).hexdigest(), model=MODEL, primary=trial.primary,
            fallback=fallback, candidate=trial.candidate, variants="\n".join(variants),
            shares=json.dumps(SHARES), samples=self._samples, patience=PATIENCE_S,
        )  # fmt: skip
        self._file.write_text(text, encoding="utf-8")

    async def _watched(self, number: int, trial: _Trial, traffic: Traffic, child: Child) -> Candidate:
        """Follow a rollout to its end."""
        began, before, steps = time.monotonic(), traffic.answered[trial.candidate], list[Step]()
        while time.monotonic() - began < PATIENCE_S:
            if child.process.returncode is not None:
                raise EngineError(f"the gateway ended with {child.process.returncode}; see {self._folder}/gateway.log")
            found = (await traffic.seen()).get("rollout")
            if found and found["candidate"] == trial.candidate:
                self._progress(trial.candidate, *_way(number, found))
                for step in self._new(trial.candidate, len(steps)):
                    steps.append(step)
                    self._tell(step)
                if steps and steps[-1].state in ENDS:
                    answered = traffic.answered[trial.candidate] - before
                    seconds, outcome = time.monotonic() - began, steps[-1].state
                    return Candidate(trial.candidate, outcome, trial.expected, seconds, answered, tuple(steps))
            await asyncio.sleep(POLL_S)
        raise EngineError(f"{trial.candidate} was neither promoted nor rolled back in {PATIENCE_S:g} s")

    def _new(self, candidate: str, known: int) -> list[Step]:
        """The moves that were written down since the last time."""
        now = RolloutFile(self._folder / "deploy.rollouts.json").read(MODEL)
        if now is None or now.candidate != candidate:
            return []
        return [self._step(now, place) for place in range(known, len(now.history))]

    def _step(self, now: Progress, place: int) -> Step:
        move = now.history[place]
        # A decision stands with the state that it found, so it is that of the move before.
        last = now.history[place - 1] if place else None
        rows = [row for row in now.decisions if last and (row["state"], row["step"]) == (last.state, last.step)]
        record = rows[-1]["decision"] if rows else None
        decision = None if record is None else replayed(record)
        path = None
        if record is not None:
            self._decisions += 1
            path = self._folder / f"decision-{self._decisions}.json"
            path.write_text(to_json_text(dict(record)), encoding="utf-8")
        after = time.monotonic() - self._began
        return Step(now.candidate, after, move.state, move.weight, move.why, decision, record, path)

    def _outcome(self, found: tuple[Candidate, ...], traffic: Traffic) -> RolloutDemo:
        p50, p99 = (traffic.latency.quantile(q) if traffic.latency.count else float("nan") for q in (0.5, 0.99))
        seconds = time.monotonic() - self._began
        return RolloutDemo(found, traffic.requests, dict(traffic.answered), dict(traffic.errors), p50, p99, seconds)


def _way(number: int, found: Mapping[str, Any]) -> tuple[int, int]:
    """How far all is, in thousandths of the states that come: the shadow and steps of the good one, one of the bad."""
    states = (1 + len(SHARES), 1)
    at = 0 if found["step"] is None else 1 + found["step"]
    part = 1.0 if found["state"] in ENDS else 0.0
    if part:
        at = states[number] - 1
    elif found["progress"]:
        needs = [test["to_safe"] for test in found["tests"] if test["required"]]
        now = found["progress"]
        shares = [now["samples"] / now["needed_samples"], now["elapsed_s"] / now["needed_s"], *needs]
        part = min(1.0, *shares) if number == 0 else max(test["to_harm"] for test in found["tests"])
    whole = sum(states[:number]) + min(at, states[number] - 1) + part
    return round(PARTS * whole), PARTS * sum(states)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, and the end of a terminal, be what Ctrl-C is."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "it runs in one"
    taken = (signal.SIGTERM, signal.SIGHUP)
    for one in taken:
        loop.add_signal_handler(one, task.cancel)
    try:
        yield
    finally:
        for one in taken:
            loop.remove_signal_handler(one)
