"""The watch beside requests: what it shows as if it lasted, what it forgets, and which clock it goes by."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.deploy.alerting.plan import MonitorPlan, Silence
from tersor.deploy.config import Deployment, ModelPlan, VariantPlan
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.refresh import Refresh
from tersor.deploy.gateway.recording.store import Happening, Store, read_document, read_happenings
from tersor.deploy.gateway.recording.watch import Watch

from .test_recorder import Clock

Gauge = pytest.importorskip("prometheus_client", reason="exports metrics: pip install 'tersor[serve]'").Gauge
PLAN = ModelPlan("q", {"q": VariantPlan("llama.cpp", embedded="q4_k_m")})


class Watched:
    """A watch of models whose engines were never started, with a clock that a test sets."""

    def __init__(self, folder: Path, monitor: MonitorPlan) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.metrics.recorder = Recorder(self.clock)
        self.models: dict[str, Served] = {"m": Served("m", PLAN, self.metrics)}
        self.record = folder / "record.db"
        self.watch = Watch(Deployment({"m": PLAN}, record=str(self.record), monitor=monitor), self.metrics, self._now)

    def _now(self) -> Mapping[str, Served]:
        return self.models

    def shown(self, name: str) -> dict[str, float]:
        """Value of each series of a gauge."""
        lines = self.metrics.text().decode().splitlines()
        rows = [line.rsplit(" ", 1) for line in lines if line.startswith(f"{name}{{")]
        return {labels.partition("{")[2].rstrip("}"): float(value) for labels, value in rows}

    def written(self) -> list[str]:
        found = [one.details for one in read_happenings(self.record) if one.what.startswith("alert ")]
        return [f"{one['alert']} {one['state']}" for one in found]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[Callable[[], bool]], Awaitable[None]]]:
        """Watch, and yield what waits for something to come about."""

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(10):
                while not condition():
                    await asyncio.sleep(0.01)

        async with self.watch.running():
            yield until


def plan(**limits: object) -> MonitorPlan:
    return MonitorPlan({}, look_every_s=0.01, limits=limits)


ALERT = 'alert="EngineDown",model="m",variant="q"'
Q = 'model="m",variant="q"'


def test_a_share_of_an_hour_ago_is_shown_no_longer(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, plan())
        async with watched.running() as until:
            for number in range(20):
                watched.metrics.recorder.labelled("m", "q", is_right=number % 2 == 0)
                watched.metrics.recorder.compared("m", "q", agreed=number % 4 > 0)
            await until(lambda: watched.shown("tersor_accuracy_ratio") == {Q: 0.5})
            await until(lambda: watched.shown("tersor_agreement_ratio") == {Q: 0.75})
            watched.clock.now += 2 * 3600
            await until(lambda: watched.shown("tersor_accuracy_ratio") == {})
            await until(lambda: watched.shown("tersor_agreement_ratio") == {})

    asyncio.run(run())


def test_a_variant_that_is_gone_leaves_no_value_that_lasts(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, plan(EngineDown={"for_s": 0}))
        async with watched.running() as until:
            await until(lambda: watched.shown("tersor_alerts_firing") == {ALERT: 1})
            assert watched.shown("tersor_engine_memory_bytes") == {Q: 0}
            watched.models = {"n": Served("n", PLAN, watched.metrics)}
            await until(lambda: watched.shown("tersor_alerts_firing") == {ALERT.replace('"m"', '"n"'): 1})
            assert watched.shown("tersor_engine_memory_bytes") == {Q.replace('"m"', '"n"'): 0}
        assert sorted(watched.written()) == ["EngineDown firing", "EngineDown firing", "EngineDown resolved"]

    asyncio.run(run())


def test_nothing_is_shown_of_a_variant_that_was_forgotten() -> None:
    metrics = Metrics()
    about = {"model": "m", "variant": "q"}
    gauges = [one for one in vars(metrics).values() if isinstance(one, Gauge) and {*about} <= {*one._labelnames}]
    assert metrics.weight in gauges
    for gauge in gauges:
        for variant in ("q", "other"):
            gauge.labels(*[{**about, "variant": variant}.get(name, "x") for name in gauge._labelnames]).set(1)
    metrics.forget("m", "q")
    left = {line.partition("{")[0] for line in metrics.text().decode().splitlines() if 'variant="q"' in line}
    assert left == {"tersor_engine_ready"}  # which the variant itself takes away
    assert metrics.text().count(b'variant="other"') == len(gauges)


def test_what_fired_before_a_restart_is_shown_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, plan(EngineDown={"for_s": 0}))
        async with watched.running() as until:
            await until(lambda: watched.shown("tersor_alerts_firing") == {ALERT: 1})
        again = Watched(tmp_path, plan(EngineDown={"for_s": 3600}))
        async with again.running():
            assert again.shown("tersor_alerts_firing") == {ALERT: 1}
        assert again.written() == ["EngineDown firing"]

    asyncio.run(run())


def test_a_wall_clock_that_jumps_makes_nothing_fire(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, plan(EngineDown={"for_s": 600}, HighMemory={"limit": 1, "for_s": 0}))
        async with watched.running() as until:
            await until(lambda: bool(watched.watch.alarms.book.alerts))
            for jump in (3600, -7200, 86_400):
                watched.clock.now += jump
                await asyncio.sleep(0.05)
                found = {key: one.value for key, one in watched.watch.alarms.book.alerts.items()}
                assert found == {("EngineDown", "m", "q"): 1.0}
            (alert,) = watched.watch.alarms.book.alerts.values()
            assert alert.state == "pending"
        assert watched.written() == []

    asyncio.run(run())


def test_engines_that_start_again_and_again_are_told_and_the_first_time_does_not_count(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, plan(EngineDown={"for_s": 3600}))
        variant = watched.models["m"].variants["q"]
        variant.starts = 1
        async with watched.running() as until:
            await until(lambda: bool(watched.watch.alarms.book.alerts))
            variant.starts = 3
            await asyncio.sleep(0.1)
            assert watched.written() == []
            variant.starts = 4
            await until(lambda: watched.written() == ["EngineRestarts firing"])

    asyncio.run(run())


def test_a_refresh_is_tried_again_while_inputs_drift_when_it_is_due(tmp_path: Path) -> None:
    async def run() -> None:
        command = (sys.executable, "-c", "raise SystemExit(3)")
        watched = Watched(tmp_path, replace(plan(), refresh=command, refresh_every_s=3600.0))
        watched.metrics.recorder.clipping["m"] = ("conv 1",)

        def codes() -> list[int]:
            rows = read_happenings(watched.record)
            return [row.details["exit_code"] for row in rows if row.what == "refresh run"]

        async with watched.running() as until:
            await until(lambda: codes() == [3])
            looks = watched.clock.asked
            await until(lambda: watched.clock.asked > looks + 20)  # it has looked again, many times
            assert codes() == [3]
            watched.clock.now += 3601
            await until(lambda: codes() == [3, 3])
            watched.metrics.recorder.clipping["m"] = ()
            await until(lambda: watched.written() == ["InputDrift firing", "InputDrift resolved"])
            looks, watched.clock.now = watched.clock.asked, watched.clock.now + 3601
            await until(lambda: watched.clock.asked > looks + 20)
        assert codes() == [3, 3]

    asyncio.run(run())


def test_whether_an_alert_was_told_is_kept_with_it(tmp_path: Path) -> None:
    def kept(watched: Watched) -> list[tuple[str, bool]]:
        rows = read_document(watched.record, "alerts") or []
        return [(row["alert"], row["told"]) for row in rows if row["state"] == "firing"]

    async def run() -> None:
        limits: dict[str, object] = {"EngineDown": {"for_s": 0}}
        quiet = Silence("EngineDown", "2027-01-15T09:00:00Z")
        watched = Watched(tmp_path, replace(plan(**limits), silences=(quiet,)))
        async with watched.running() as until:
            await until(lambda: kept(watched) == [("EngineDown", False)])
        again = Watched(tmp_path, replace(plan(**limits), silences=(quiet,)))
        async with again.running() as until:
            assert again.watch.alarms.untold
            again.clock.now += 3601  # the silence is over
            await until(lambda: kept(again) == [("EngineDown", True)])

    asyncio.run(run())


def test_how_long_ago_a_refresh_ran_outlives_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, replace(plan(), refresh=("true",), refresh_every_s=86_400.0))
        now = watched.clock.now
        store = Store(watched.record)
        store.happen(*[Happening(now - ago, "refresh run", "m", {"exit_code": 0}) for ago in (90_000, 60)])
        store.happen(Happening(now, "refresh wanted", "n", {}))
        store.close()
        async with watched.running():
            refresh = watched.watch.refresh
            assert [refresh.may("m", now), refresh.may("m", now + 86_400 - 61), refresh.may("n", now)] == [0, 0, 1]
            assert refresh.may("m", now + 86_400 - 60)
            assert not refresh.may("m", now + 86_400 - 59)

    asyncio.run(run())


def test_a_refresh_of_a_clock_that_was_ahead_holds_none_up() -> None:
    refresh = Refresh(("true",), 86_400.0)
    assert refresh.may("m", 10 * 86_400.0)
    assert refresh.may("m", 2 * 86_400.0)
    assert not refresh.may("m", 2 * 86_400.0 + 60)
