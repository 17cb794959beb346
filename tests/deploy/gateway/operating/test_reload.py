"""Reloading while requests flow: none fails, and what cannot serve changes nothing."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import YAML, Live, live
from ..test_faults import gone, metric, until
from .orders import BODY, JSON, answered_by, asked, ordered, seen

ROOMY = YAML.replace("in_flight: 4, queue: 4", "in_flight: 8, queue: 60")


@pytest.fixture
def deployment(folder: Path) -> Path:
    """A deployment that can be changed, with a second copy of the quantized artefact."""
    shutil.copy(folder / "small.gguf", folder / "again.gguf")
    path = folder / "deploy.yaml"
    path.write_text(ROOMY)
    return path


@pytest.fixture
def gateway(deployment: Path) -> Iterator[Live]:
    with live(deployment) as found:
        yield found


class Traffic:
    """Requests of three kinds, one after another in a thread each, and what was wrong with them."""

    def __init__(self, address: str) -> None:
        self.address, self.counts = address, dict.fromkeys(("whole", "streamed", "tensors"), 0)
        self.wrong: list[str] = []
        self._ended = threading.Event()
        kinds: dict[str, Callable[[], str]] = {
            "whole": self._whole, "streamed": self._streamed, "tensors": self._tensors
        }  # fmt: skip
        self._threads = [threading.Thread(target=self._go_on, args=one) for one in kinds.items() for _ in range(2)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self, kind: str, ask: Callable[[], str]) -> None:
        while not self._ended.is_set():
            try:
                wrong = ask()
            except (OSError, http.client.HTTPException, ValueError) as error:
                wrong = repr(error)
            self.counts[kind] += 1
            if wrong:
                self.wrong.append(f"{kind}: {wrong}")

    def _whole(self) -> str:
        status, told, _ = asked(self.address, "POST", "/v1/completions", BODY, JSON)
        return "" if status == 200 and told["choices"][0]["finish_reason"] == "length" else f"{status} {told}"

    def _streamed(self) -> str:
        body = {**BODY, "stream": True, "max_tokens": 60, "temperature": 1, "seed": self.counts["streamed"]}
        status, told, _ = asked(self.address, "POST", "/v1/completions", body, JSON)
        return "" if status == 200 and told.endswith("data: [DONE]\n\n") else f"{status} {told[-300:]}"

    def _tensors(self) -> str:
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
        status, told, _ = asked(self.address, "POST", "/v2/models/twice/infer", body)
        return "" if status == 200 and told["outputs"][0]["data"] == [2, 4, 6] else f"{status} {told}"


def test_no_request_fails_while_variants_are_replaced(gateway: Live, deployment: Path) -> None:
    other = ROOMY.replace("path: small.gguf", "path: again.gguf").replace("twice.onnx}", "twice.onnx, threads: 2}")
    old = set(gateway.children())
    with Traffic(gateway.address) as traffic:
        for number in range(6):
            deployment.write_text((other, ROOMY)[number % 2])
            if number < 4:
                assert ordered(gateway, "reload")[0] == 200
            else:
                gateway.process.send_signal(signal.SIGHUP)
            wanted = ("again.gguf", "small.gguf")[number % 2]
            until(lambda wanted=wanted: bool(gateway.engines(wanted)))  # type: ignore[misc]  # a default is a closure
            time.sleep(0.5)
        assert ordered(gateway, "reload")[1] == {
            "action": "reload", "result": "done", "loaded": [], "kept": ["demo", "twice"], "removed": []
        }  # fmt: skip
    assert traffic.wrong == []
    assert min(traffic.counts.values()) > 10, traffic.counts
    until(lambda: len(gateway.children()) == 4)
    assert len(gateway.engines("full.gguf")) == 1
    assert set(gateway.engines("full.gguf")) <= old  # the one that did not change was never loaded again
    until(lambda: metric(gateway.address, "tersor_engine_ready") == 4)
    assert metric(gateway.address, "tersor_in_flight_requests") == 0
    assert answered_by(gateway) == "quantized"


def test_a_file_that_was_replaced_is_loaded_anew(gateway: Live, folder: Path) -> None:
    before = asked(gateway.address, "POST", "/v1/completions", {**BODY, "max_tokens": 30}, JSON)[1]
    shutil.copy(folder / "garbage.gguf", folder / "new.gguf")
    os.replace(folder / "new.gguf", folder / "small.gguf")  # noqa: PTH105
    (old,) = gateway.engines("small.gguf")
    assert ordered(gateway, "reload")[1]["loaded"] == ["demo"]
    until(lambda: gone([old]))
    status, after, headers = asked(gateway.address, "POST", "/v1/completions", {**BODY, "max_tokens": 30}, JSON)
    assert status == 200
    assert headers.get("x-tersor-fallback") == "fault" or after["choices"] != before["choices"]


def test_an_engine_that_comes_back_with_another_file_does_not_answer(gateway: Live, folder: Path) -> None:
    shutil.copy(folder / "garbage.gguf", folder / "new.gguf")
    os.replace(folder / "new.gguf", folder / "small.gguf")  # noqa: PTH105
    os.kill(gateway.engines("small.gguf")[0], signal.SIGKILL)
    until(lambda: seen(gateway)["variants"][0]["state"] == "replaced on disk")
    for _ in range(3):
        assert answered_by(gateway) == "full"
    assert ordered(gateway, "reload")[0] == 200
    assert seen(gateway)["variants"][0]["state"] == "ready"


def no_yaml(folder: Path) -> str:
    return "models: ["


def no_file(folder: Path) -> str:
    return ROOMY.replace("small.gguf", "none.gguf")


def no_model(folder: Path) -> str:
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    # What comes first would load: it must not serve either.
    return ROOMY.replace("full.gguf", "broken.gguf").replace("small.gguf", "again.gguf")


def no_net(folder: Path) -> str:
    (folder / "broken.onnx").write_bytes(b"broken")
    # The model before it is loaded by then, and shares an engine with what serves.
    return ROOMY.replace("small.gguf", "again.gguf").replace("path: twice.onnx", "path: broken.onnx", 1)


def other_port(folder: Path) -> str:
    return "receive_s: 3\n" + ROOMY


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (no_yaml, "not a YAML document"),
        (no_file, "demo.variants.quantized: none.gguf is not there"),
        (no_model, "demo/full: "),
        (no_net, "twice/quantized: "),
        (other_port, "receive_s cannot change while it serves"),
    ],
)
def test_what_cannot_serve_changes_nothing_and_says_why(
    text: Callable[[Path], str], words: str, gateway: Live, deployment: Path
) -> None:
    before = sorted(gateway.children())
    deployment.write_text(text(deployment.parent))
    status, told = ordered(gateway, "reload")
    assert status == 409
    assert words in told["error"]["message"]
    assert sorted(gateway.children()) == before
    assert answered_by(gateway) == "quantized"
    assert metric(gateway.address, "tersor_engine_ready") == 4


def test_a_model_that_is_gone_answers_what_it_had_and_one_that_is_new_answers(gateway: Live, deployment: Path) -> None:
    stream = http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=30)
    body = {**BODY, "stream": True, "max_tokens": 300, "temperature": 1, "seed": 5}
    stream.request("POST", "/v1/completions", json.dumps(body), JSON)
    response = stream.getresponse()
    response.read(10)
    deployment.write_text(ROOMY.replace("  demo:", "  chat:"))
    assert ordered(gateway, "reload")[1]["removed"] == ["demo"]
    assert asked(gateway.address, "POST", "/v1/completions", BODY, JSON)[0] == 404
    assert asked(gateway.address, "POST", "/v1/completions", {**BODY, "model": "chat"}, JSON)[0] == 200
    assert response.read().endswith(b"data: [DONE]\n\n")
    stream.close()
    until(lambda: len(gateway.children()) == 4)
    assert metric(gateway.address, 'tersor_engine_ready{model="demo"') == 0


def test_a_signal_that_comes_while_models_are_loaded_ends_nothing(gateway: Live, deployment: Path) -> None:
    deployment.write_text(ROOMY.replace("path: small.gguf", "path: again.gguf"))
    for _ in range(5):
        gateway.process.send_signal(signal.SIGHUP)
    until(lambda: bool(gateway.engines("again.gguf")) and not gateway.engines("small.gguf"))
    gateway.process.send_signal(signal.SIGHUP)
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(timeout=30) == 0


def test_a_reload_that_one_model_cannot_follow_changes_no_other(gateway: Live, deployment: Path) -> None:
    assert ordered(gateway, "rollback", "twice")[0] == 200
    text = deployment.read_text().replace("in_flight: 8", "in_flight: 7")
    before, _, last = text.rpartition("    fallback: full\n")
    deployment.write_text(before + last)
    status, told = ordered(gateway, "reload")
    assert (status, "quantized was rolled back; give it a fallback" in told["error"]["message"]) == (409, True)
    assert seen(gateway)["guard"]["limits"]["in_flight"] == 8
    assert (seen(gateway, "twice")["state"], len(gateway.children())) == ("rolled back", 4)
