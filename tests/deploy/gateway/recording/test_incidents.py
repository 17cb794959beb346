"""What befell a gateway stands in its record: a restart, a breaker, causes by day, drift, and when it ran."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.recording.incidents import CAUSES, Incidents, drift_row, merged
from tersor.deploy.gateway.recording.recorder import DAYS
from tersor.deploy.gateway.recording.samples import compared, reference_of
from tersor.deploy.gateway.recording.store import Happening, Store, read_happenings
from tersor.deploy.monitor import FalseAlarmBudget

from ..conftest import YAML, live
from ..operating.orders import BODY, JSON, asked
from .test_recorder import Clock

ODD = YAML.replace("path: small.gguf", "path: garbage.gguf")


def until(path: Path, what: str) -> Happening:
    """The first happening of a kind; waits for it."""
    end = time.monotonic() + 40
    while not (found := [one for one in read_happenings(path) if one.what == what]):
        assert time.monotonic() < end, read_happenings(path)
        time.sleep(0.2)
    return found[0]


def test_an_engine_that_was_killed_and_a_breaker_that_opened_are_written_down(deployed: Callable[[str], Path]) -> None:
    place = deployed(ODD)
    path = place.with_name(f"{place.stem}.record.db")
    with live(place) as gateway:
        for seed in range(8):  # garbage: the fallback answers, and the breaker opens
            body = {**BODY, "max_tokens": 40, "temperature": 1, "seed": seed}
            assert asked(gateway.address, "POST", "/v1/completions", body, JSON)[0] == 200
        opened = until(path, "breaker open")
        os.kill(gateway.children()[-1], signal.SIGKILL)
        restarted = until(path, "engine restarted")
        assert opened.model == "demo"
        assert opened.details["variant"] == "quantized"
        assert "in a row" in opened.details["reason"]
        assert restarted.details["times"] == 1
        assert "9" in restarted.details["reason"]  # the signal
    happened = [one.what for one in read_happenings(path)]
    assert (happened[0], happened[-1]) == ("gateway began", "gateway ended")
    store = Store(path)
    day = datetime.now(UTC).date().isoformat()
    causes = store.get(CAUSES)[day]["demo"]
    store.close()
    assert sum(causes["fallbacks"].values()) == 8
    assert sum(causes["findings"].values()) >= 5


def test_causes_are_counted_once_and_for_five_weeks(tmp_path: Path) -> None:
    metrics, clock, store = Metrics(), Clock(), Store(tmp_path / "r.db")
    incidents = Incidents(metrics, clock)
    metrics.fallbacks.labels("m", "timeout").inc(3)
    metrics.findings.labels("m", "q", "loop").inc(1)
    metrics.findings.labels("m", "r", "loop").inc(1)
    for _ in range(3):
        incidents.save(store)
    metrics.fallbacks.labels("m", "timeout").inc(2)
    incidents.save(store)
    Incidents(Metrics(), clock).save(store)  # the next gateway counts from zero
    day = datetime.fromtimestamp(clock.now, UTC)
    assert store.get(CAUSES) == {day.date().isoformat(): {"m": {"fallbacks": {"timeout": 5}, "findings": {"loop": 2}}}}
    later = merged(store.get(CAUSES), {("fallbacks", "m", "x"): 1}, day + timedelta(days=DAYS + 1))
    assert list(later) == [(day + timedelta(days=DAYS + 1)).date().isoformat()]
    store.close()


def test_a_window_is_told_with_its_worst_features_first() -> None:
    usual = [{"a": float(number % 50), "b": float(number % 7), "c": 1.0} for number in range(600)]
    odd = [{**row, "b": row["b"] + 100} for row in usual[:200]]
    budget = FalseAlarmBudget(1.0, 30 * 86_400.0, 3600.0)
    findings = compared(reference_of("the first 600 requests", usual), odd, budget)
    assert findings is not None
    row = drift_row("input", "m", "", findings, 7.0)
    assert (row["drifted"], next(iter(row["features"])), row["requests"]) == (["b"], "b", 200)
    assert row["features"]["b"]["outside"] == 1.0
