"""Engines beside llama.cpp and ONNX Runtime behind the gateway."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tersor import reference_model

from .conftest import live
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
