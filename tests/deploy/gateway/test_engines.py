"""Engines beside llama.cpp and ONNX Runtime behind the gateway."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tersor import reference_model
from tersor.evaluation.nets.running.choices import SLOWER, Choice, Choices, Tried, choices_path
from tersor.evaluation.nets.running.engines import installed
from tersor.evaluation.nets.running.remembered import fingerprint, releases
from tersor.files.hashing import sha256
from tersor.targets.processor import processor

from .conftest import Live, live
from .rolling import nets
from .test_faults import BODY, asked, engine_of, metric

FULL = """
models:
  demo:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: llama.cpp, path: small.gguf, context: 512}
      full: {engine: transformers, path: checkpoint, context: 512}
"""


def test_the_checkpoint_itself_answers_where_the_gguf_cannot(artefacts: Path, deployed: Callable[[str], Path]) -> None:
    pytest.importorskip("transformers", reason="runs the checkpoint: pip install 'tersor[torch]'")
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(reference_model.PATH, artefacts / "checkpoint", dirs_exist_ok=True, ignore=ignored)
    body = {**BODY, "logprobs": 2}
    with live(deployed(FULL)) as gateway:
        status, small, headers = asked(gateway.address, "/v1/completions", body)
        assert (status, headers["x-tersor-variant"]) == (200, "quantized")
        os.kill(engine_of(gateway, "small.gguf"), signal.SIGKILL)
        status, full, headers = asked(gateway.address, "/v1/completions", body)
        assert (status, headers["x-tersor-variant"], headers["x-tersor-fallback"]) == (200, "full", "error")
    assert full["usage"]["completion_tokens"] == small["usage"]["completion_tokens"] == 4
    choice, other = full["choices"][0], small["choices"][0]
    assert set(choice) == set(other)
    assert set(choice["logprobs"]) == set(other["logprobs"])
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert [len(one) for one in choice["logprobs"]["top_logprobs"]] == [2] * 4


BATCHED = """
models:
  twice:
    primary: only
    variants:
      only: {engine: onnxruntime, path: twice.onnx, max_batch: 8, max_wait_ms: 100}
    limits: {in_flight: 16, queue: 16}
"""


def test_requests_that_come_together_are_computed_together(deployed: Callable[[str], Path]) -> None:
    def ask(number: int) -> list[float]:
        row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [number, 0, 1]}
        status, made, _ = asked(gateway.address, "/v2/models/twice/infer", {"inputs": [row]})
        assert status == 200, made
        return list(made["outputs"][0]["data"])

    with live(deployed(BATCHED)) as gateway, concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == [[2 * number, 0, 2] for number in range(64)]
        assert metric(gateway.address, "tersor_batch_requests_count") == 64
        assert metric(gateway.address, "tersor_batch_requests_sum") > 2 * 64


CHOSEN = """
models:
  twice:
    primary: open
    fallback: said
    variants:
      open: {engine: onnxruntime, path: chosen/twice.onnx}
      said: {engine: onnxruntime, path: chosen/twice.onnx, threads: 1, layout: true}
"""


def options_of(gateway: Live) -> list[dict[str, Any]]:
    """What its engines were started with."""
    lines = (Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in gateway.children())
    return [json.loads(word) for words in lines for word in words if word.startswith(b"{")]


def test_what_optimize_chose_fills_in_what_the_deployment_leaves_open(
    artefacts: Path, deployed: Callable[[str], Path]
) -> None:
    net = artefacts / "chosen" / "twice.onnx"
    net.parent.mkdir()
    shutil.copy(artefacts / "twice.onnx", net)
    spinning, other = {"layout": False, "spin": True}, {"layout": True, "spin": True}
    tried = (
        Tried("openvino", 1, {"pinning": True}, 1.0),
        Tried("onnxruntime", 2, spinning, 2.0, SLOWER),
        Tried("onnxruntime", 1, other, 3.0, SLOWER),
    )
    here, made = fingerprint(processor()), releases(("onnxruntime",))
    best = tried[bool(installed("openvino"))]  # what cannot run here any more is not remembered
    kept = Choice(sha256(net), here, best.engine, best.threads, best.settings, 1, 128, 1.0, tried, made, "2026-11-28")
    choices_path(net).write_text(Choices((kept,)).to_json())
    with live(deployed(CHOSEN)) as gateway:
        assert gateway.process.stderr is not None
        said = gateway.process.stderr.readline()
        started = options_of(gateway)
        row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}
        assert asked(gateway.address, "/v2/models/twice/infer", {"inputs": [row]})[0] == 200
    assert "twice/open: 2 threads, no layout, as tersor optimize found on 2026-11-28" in said
    assert ("; openvino was faster" in said) == (best.engine == "openvino")
    assert sorted((one["threads"], one["layout"]) for one in started) == [(1, True), (2, False)]
    choices_path(net).write_text(Choices((replace(kept, versions={"onnxruntime": "0.1"}),)).to_json())
    with live(deployed(CHOSEN)) as gateway:
        assert {(one.get("threads"), one.get("layout")) for one in options_of(gateway)} == {(None, None), (1, True)}


HUNGRY = """
models:
  twice:
    primary: hungry
    fallback: plain
    variants:
      hungry: {engine: onnxruntime, path: hungry.onnx}
      plain: {engine: onnxruntime, path: plain.onnx}
"""


def doubled(gateway: Live, first: float) -> tuple[int, str | None, str | None]:
    """Status, variant and reason of a fallback; 2^50 is more than memory can do for in the hungry net."""
    row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [first, 0, 1]}
    status, made, headers = asked(gateway.address, "/v2/models/twice/infer", {"inputs": [row]})
    assert status != 200 or made["outputs"][0]["data"] == pytest.approx([2 * first, 0, 2])
    return status, headers.get("x-tersor-variant"), headers.get("x-tersor-fallback")


def test_what_an_engine_fails_at_is_not_the_clients_fault(tmp_path: Path) -> None:
    nets.hungry(tmp_path / "hungry.onnx")
    nets.plain(tmp_path / "plain.onnx")
    deployment = tmp_path / "deploy.yaml"
    deployment.write_text(HUNGRY)
    with live(deployment) as gateway:
        assert doubled(gateway, 4) == (200, "hungry", None)
        for cause in ["error"] * 5 + ["breaker open"]:  # five failures in a row
            assert doubled(gateway, 2.0**50) == (200, "plain", cause)
        assert metric(gateway.address, 'tersor_fallbacks_total{model="twice",reason="error"}') == 5
    deployment.write_text(HUNGRY.replace("    fallback: plain\n", ""))
    with live(deployment) as gateway:
        for _ in range(6):
            assert doubled(gateway, 2.0**50)[0] == 503
        assert doubled(gateway, 4)[0] == 200
        assert metric(gateway.address, "tersor_failed_total") == 6


def test_what_full_precision_fails_at_too_opens_no_breaker(tmp_path: Path) -> None:
    nets.hungry(tmp_path / "hungry.onnx")
    deployment = tmp_path / "deploy.yaml"
    deployment.write_text(HUNGRY.replace("plain.onnx", "hungry.onnx"))
    with live(deployment) as gateway:
        assert [doubled(gateway, 2.0**50)[0] for _ in range(8)] == [503] * 8
        assert doubled(gateway, 4) == (200, "hungry", None)
