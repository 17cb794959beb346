"""What a gateway leaves behind after days of serving, written by its own parts with a clock that a test sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tersor.deploy.alerting.book import Alert
from tersor.deploy.gateway.recording.incidents import CAUSES, DRIFT, drift_row, merged
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.samples import compared, reference_of
from tersor.deploy.gateway.recording.store import Happening, Store
from tersor.deploy.gateway.reporting.incidents import time_of
from tersor.deploy.gateway.rolling import progress
from tersor.deploy.gateway.rolling.keeping import RolloutFile
from tersor.deploy.gateway.rolling.progress import Move, Progress
from tersor.deploy.monitor import FalseAlarmBudget
from tersor.deploy.rollout.decision import StepProgress, decide
from tersor.deploy.rollout.plan import RolloutPlan
from tersor.deploy.rollout.sequential import Agreement, AnyTest, stored

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
YAML = """
models:
  chat:
    primary: q8
    fallback: full
    candidate: q4
    variants:
      q8: {engine: llama.cpp, path: q8.gguf}
      q4: {engine: llama.cpp, path: q4.gguf}
      full: {engine: llama.cpp, path: full.gguf}
  alone:
    primary: q4
    variants:
      q4: {engine: llama.cpp, path: q4.gguf}
"""


def deployed(folder: Path, yaml: str = YAML) -> Path:
    """A deployment that nobody has served yet."""
    for name in ("q8", "q4", "full"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF")
    place = folder / "deploy.yaml"
    place.write_text(yaml)
    return place


def served(folder: Path, name: str = "chat") -> Path:
    """The same after three days; q8 is faster than full precision, agrees in 98 of 100 answers, and once failed."""
    place = deployed(folder, YAML.replace("chat:", f"{name}:"))
    store, recorder = Store(folder / "deploy.record.db"), Recorder(lambda: clock[0])
    clock = [NOW - 3 * 86_400.0]
    rng = np.random.default_rng(0)
    store.happen(_happening(clock[0], "gateway began", "", version="0.1.0", primaries={name: "q8"}))
    while clock[0] < NOW - 1:
        for _ in range(2):
            recorder.answered(name, "q8", 0.02, float(rng.lognormal(-2.5, 0.3)), 20)
            recorder.compared(name, "q8", agreed=bool(rng.random() < 0.98))
        recorder.answered(name, "full", 0.05, float(rng.lognormal(-1.5, 0.3)), 20)
        if rng.random() < 0.02:
            recorder.fell_back(name, "q8")
        recorder.holds(name, "q8", 120 << 20)
        recorder.holds(name, "full", 400 << 20)
        clock[0] += 600.0 if clock[0] < NOW - 7200 else 60.0
    recorder.failed(name, "q8")
    store.save(recorder)
    _befell(store, name)
    store.close()
    RolloutFile(folder / "deploy.rollouts.json").keep(name, _rollout())
    line = {"at": time_of(NOW - 5000), "who": "ann", "origin": "127.0.0.1", "what": "rollback", "subject": name}
    (folder / "deploy.audit.jsonl").write_text(json.dumps({**line, "result": "done", "reason": "night shift"}) + "\n")
    return place


def _happening(at: float, what: str, model: str, **details: object) -> Happening:
    return Happening(at, what, model, details)


def _befell(store: Store, name: str) -> None:
    """Two alerts, of which one fires still, a breaker, a restart, a kill, drift and a refresh that was wished for."""
    fired = Alert("HighFallbackShare", name, "q8", "firing", NOW - 5000, 0.08, 0.05)
    slow = Alert("SlowAnswers", name, "q8", "firing", NOW - 900, 12.0, 10.0)
    usual = [{"characters": float(number % 50), "digits": 0.1} for number in range(600)]
    odd = [{"characters": row["characters"] + 400, "digits": 0.1} for row in usual[:200]]
    findings = compared(
        reference_of("the first 600 requests", usual), odd, FalseAlarmBudget(1.0, 30 * 86_400.0, 3600.0)
    )
    assert findings is not None
    row = drift_row("input", name, "", findings, NOW - 3600)
    store.happen(
        _happening(NOW - 6000, "breaker open", name, variant="q8", reason="5 bad outcomes in a row", wait_s=5),
        _happening(NOW - 5970, "breaker closed", name, variant="q8", reason="5 probes came back well", wait_s=0),
        Happening(NOW - 5000, "alert firing", name, fired.to_object()),
        _happening(NOW - 4500, "engine restarted", name, variant="q8", times=1, reason="ended by signal 9"),
        Happening(NOW - 4400, "alert resolved", name, replace(fired, state="resolved").to_object()),
        _happening(NOW - 4000, "gateway began", "", version="0.1.0", primaries={name: "q8"}),
        Happening(NOW - 3600, "drifted", name, row),
        _happening(NOW - 3599, "refresh wanted", name, features=["characters"], commands=["tersor calibrate MODEL"]),
        Happening(NOW - 900, "alert firing", name, slow.to_object()),
    )
    low = Alert("LowAgreement", name, "q8", "pending", NOW - 60, 0.96, 0.97)
    store.put("alerts", [slow.to_object(), low.to_object()])
    store.put(DRIFT, [row])
    counts: Mapping[tuple[str, str, str], int] = {("fallbacks", name, "fault"): 7, ("findings", name, "loop"): 7}
    store.put(CAUSES, merged(None, counts, _day()))


def _day() -> datetime:
    return datetime.fromtimestamp(NOW, UTC)


def _rollout() -> Progress:
    """One that came into its first step, on 600 comparisons that agreed, and waits there."""
    plan, at = RolloutPlan(), time_of(NOW - 86_400)
    tests: dict[str, AnyTest] = plan.begin()
    agreement = tests["agreement"]
    assert isinstance(agreement, Agreement)
    tests["agreement"] = agreement.update([1.0] * 600)
    now = progress.begun("q8", "q4", ("q8.gguf", "q4.gguf"), None, Move(at, "created", None, 0.0, "ann", "try it"))
    for _ in range(2):
        now = progress.advanced(now, plan, at, "rollout", "it may serve")
    now = replace(now, samples=600, elapsed_s=700.0, tests=stored(tests))
    decision = decide(tests, plan.rules(None), StepProgress(600, 700.0))
    assert decision.action == "PROMOTE_STEP"
    later = time_of(NOW - 80_000)
    now = progress.decided(now, decision, later)
    return progress.advanced(now, plan, later, "rollout", decision.reason)
