"""Alerts of a gateway that answers: they fire, end, are told and written down; labels come over HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.alerting.receivers import Hook

from tersor.deploy.gateway.recording.store import read_happenings

from ..conftest import DEMO, Live, live
from ..operating.orders import BODY, JSON, asked, ordered
from ..test_faults import engine_of, metric, until

WATCH = "monitor:\n  webhook_env: HOOK\n  look_every_s: 0.1\n  limits: {EngineDown: {for_s: 0.3}}\n"
SILENCE = "  silences: [{alert: EngineDown, model: demo, until: 2999-01-01T00:00:00Z}]\n"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    with made.running() as address:
        monkeypatch.setenv("HOOK", f"{address}/hush")
        yield made


@pytest.fixture
def deployment(artefacts: Path, tmp_path: Path) -> Path:
    for name in ("small.gguf", "full.gguf", "garbage.gguf"):
        shutil.copy(artefacts / name, tmp_path)
    path = tmp_path / "deploy.yaml"
    path.write_text(DEMO + WATCH)
    return path


def told(hook: Hook, alert: str) -> list[str]:
    return [one["state"] for one in hook.documents if one["alert"] == alert]


def written(deployment: Path, alert: str) -> list[str]:
    rows = read_happenings(deployment.with_name("deploy.record.db"))
    return [row.what for row in rows if row.details.get("alert") == alert]


def firing(gateway: Live, alert: str, variant: str = "quantized") -> float:
    return metric(gateway.address, f'tersor_alerts_firing{{alert="{alert}",model="demo",variant="{variant}"}}')


def take_down(gateway: Live, folder: Path) -> None:
    """Kill the engine, and let its file be another, so that it does not come back by itself."""
    shutil.copy(folder / "garbage.gguf", folder / "new.gguf")
    os.replace(folder / "new.gguf", folder / "small.gguf")  # noqa: PTH105
    os.kill(engine_of(gateway, "small.gguf"), signal.SIGKILL)


def complete(gateway: Live, seed: int) -> tuple[str, str]:
    """Id of an answer, and the variant that gave it."""
    body = {**BODY, "temperature": 1, "seed": seed, "max_tokens": 40}
    status, made, headers = asked(gateway.address, "POST", "/v1/completions", body, JSON)
    assert status == 200, made
    return made["id"], headers["x-tersor-variant"]


def test_an_engine_that_stays_down_is_told_and_so_is_its_end(hook: Hook, deployment: Path) -> None:
    with live(deployment) as gateway:
        take_down(gateway, deployment.parent)
        until(lambda: told(hook, "EngineDown") == ["firing"])
        assert firing(gateway, "EngineDown") == 1
        (alert,) = [one for one in hook.documents if one["alert"] == "EngineDown"]
        assert (alert["model"], alert["variant"], alert["severity"]) == ("demo", "quantized", "critical")
        assert ordered(gateway, "reload")[0] == 200
        until(lambda: told(hook, "EngineDown") == ["firing", "resolved"])
        assert firing(gateway, "EngineDown") == 0
        assert written(deployment, "EngineDown") == ["alert firing", "alert resolved"]
        gateway.process.send_signal(signal.SIGTERM)
        assert "hush" not in gateway.process.communicate(timeout=30)[1]


def test_a_gateway_that_was_killed_knows_what_fired(hook: Hook, deployment: Path) -> None:
    with live(deployment) as gateway:
        take_down(gateway, deployment.parent)
        until(lambda: written(deployment, "EngineDown") == ["alert firing"])
        until(lambda: told(hook, "EngineDown") == ["firing"])  # what waits to be sent, a kill loses
        gateway.process.kill()
        gateway.process.wait(timeout=10)
    with live(deployment):  # with the file as it is now
        until(lambda: told(hook, "EngineDown") == ["firing", "resolved"])


def test_a_variant_that_says_garbage_is_told_until_it_is_replaced(hook: Hook, deployment: Path) -> None:
    watch = WATCH.replace("limits: {", "limits: {HighFallbackShare: {limit: 0.5, for_s: 0}, ")
    deployment.write_text(DEMO.replace("small.gguf", "garbage.gguf") + watch)
    with live(deployment) as gateway:
        for seed in range(25):
            complete(gateway, seed)
        until(lambda: told(hook, "HighFallbackShare") == ["firing"])
        deployment.write_text(DEMO + watch)
        assert ordered(gateway, "reload")[0] == 200
        seeds = iter(range(400))
        until(
            lambda: bool(complete(gateway, next(seeds))) and told(hook, "HighFallbackShare") == ["firing", "resolved"]
        )
        assert firing(gateway, "HighFallbackShare") == 0


def test_silences_and_limits_change_with_a_reload(hook: Hook, deployment: Path) -> None:
    with live(deployment) as gateway:
        for text, words in (
            (WATCH + "  drift_every_s: 7\n", "monitor.drift_every_s cannot change while it serves"),
            (WATCH.replace("HOOK", "NO_HOOK"), "the environment variable NO_HOOK holds no URL"),
            (WATCH.replace("EngineDown", "EngineUp"), "no alert 'EngineUp'"),
        ):
            deployment.write_text(DEMO.replace("small.gguf", "garbage.gguf") + text)
            status, answer = ordered(gateway, "reload")
            assert (status, words in answer["error"]["message"]) == (409, True), answer
        assert engine_of(gateway, "small.gguf")
        more = WATCH.replace("limits: {", "limits: {HighMemory: {limit: 0, for_s: 0}, ")
        deployment.write_text(DEMO + more + SILENCE)
        assert ordered(gateway, "reload")[1]["kept"] == ["demo"]
        until(lambda: told(hook, "HighMemory") == ["firing", "firing"])  # of both variants
        take_down(gateway, deployment.parent)
        until(lambda: written(deployment, "EngineDown") == ["alert firing"])  # the metric shows it a little earlier
        assert firing(gateway, "EngineDown") == 1
        deployment.write_text(DEMO + WATCH)
        assert ordered(gateway, "reload")[1]["loaded"] == ["demo"]
        until(lambda: told(hook, "HighMemory").count("resolved") == 2)
        assert told(hook, "EngineDown") == []


def test_labels_over_http_become_an_accuracy_and_an_alert(hook: Hook, deployment: Path) -> None:
    deployment.write_text(DEMO + WATCH.replace("limits: {", "limits: {LowAccuracy: {for_s: 0}, "))

    with live(deployment) as gateway:

        def judged(body: object) -> tuple[int, Any]:
            return asked(gateway.address, "POST", "/v1/feedback", body, JSON)[:2]

        answers = [complete(gateway, seed) for seed in range(40)]
        kept = [name for name, variant in answers if variant == "quantized"][:20]
        for number, name in enumerate(kept):
            assert metric(gateway.address, "tersor_accuracy_ratio") == 0, number  # of so few nothing is said
            assert judged({"id": name, "right": number % 4 != 0}) == (200, {"model": "demo", "variant": "quantized"})
        until(lambda: metric(gateway.address, "tersor_accuracy_ratio") == 0.75)
        until(lambda: told(hook, "LowAccuracy") == ["firing"])
        assert judged({"id": kept[0], "right": True})[0] == 404
        assert judged({"id": "cmpl-unknown", "right": True})[0] == 404
        wrong: tuple[object, ...] = ({}, [], {"id": "a"}, {"id": 1, "right": True}, {"id": "a", "right": "yes"})
        for one in (*wrong, {"id": "a" * 999, "right": True}, {"id": "a", "right": True, "more": 1}):
            status, answer = judged(one)
            assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), one
        assert metric(gateway.address, "tersor_accuracy_ratio") == 0.75


def test_tensors_are_judged_by_the_id_that_the_client_gave(deployed: Any) -> None:
    net = "models: {twice: {primary: q, variants: {q: {engine: onnxruntime, path: twice.onnx}}}}\n"
    with live(deployed(net + "monitor: {look_every_s: 0.1}\n")) as gateway:
        ones = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}
        for number in range(25):
            infer = asked(gateway.address, "POST", "/v2/models/twice/infer", {**ones, "id": f"mine-{number}"})
            assert infer[0] == 200
            told = asked(gateway.address, "POST", "/v1/feedback", {"id": f"mine-{number}", "right": number > 4}, JSON)
            assert told[:2] == (200, {"model": "twice", "variant": "q"})
        until(lambda: metric(gateway.address, "tersor_accuracy_ratio") == 0.8)


def test_a_secret_that_is_not_there_ends_it_before_anything_starts(deployment: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HOOK"}
    command = [sys.executable, "-m", "tersor", "serve", str(deployment), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert result.returncode == 1
    assert "error: monitor.webhook_env: the environment variable HOOK holds no URL" in result.stderr
    assert not deployment.with_name("deploy.record.db").exists()
