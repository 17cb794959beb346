"""A primary that is compared with full precision while nothing is rolled out."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.config import read_deployment

from ..conftest import live
from ..operating.orders import JSON, asked
from ..rolling.traffic import Client
from ..sampled.figures import metric, wait_for

YAML = """
models:
  demo:
    primary: small
    fallback: full
    variants:
      small: {{engine: llama.cpp, path: {primary}.gguf, context: 512}}
      full: {{engine: llama.cpp, path: full.gguf, context: 512}}
    limits: {{in_flight: 8, queue: 40, deadline_s: 20}}
  twice:
    primary: quantized
    fallback: full
    variants:
      quantized: {{engine: onnxruntime, path: twice.onnx}}
      full: {{engine: onnxruntime, path: twice.onnx}}
monitor: {{compare: {share}}}
"""
ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
DEMO = {"model": "demo", "variant": "small"}


@pytest.fixture
def folder(artefacts: Path, tmp_path: Path) -> Path:
    """Artefacts, and a place for the record."""
    for name in ("small.gguf", "full.gguf", "twice.onnx"):
        shutil.copy(artefacts / name, tmp_path)
    return tmp_path


def test_live_answers_are_compared_counted_by_minute_and_told_beyond_the_noise(folder: Path) -> None:
    (folder / "deploy.yaml").write_text(YAML.format(primary="small", share=100))
    with live(folder / "deploy.yaml") as gateway, Client(gateway) as client:
        for _ in range(40):
            client.ask()
            assert asked(gateway.address, "POST", "/v2/models/twice/infer", ROW, JSON)[0] == 200
        wait_for(lambda: (metric(gateway, "tersor_shadow_compared_total", **DEMO) or 0) >= 20)
        wait_for(lambda: metric(gateway, "tersor_reference_distance", **DEMO) is not None)
        agreement, floor = (
            metric(gateway, f"tersor_{name}_ratio", **DEMO) for name in ("agreement", "agreement_floor")
        )
        assert agreement is not None
        assert 0.6 < agreement <= 1
        assert floor == 1
        assert 1e-4 < (metric(gateway, "tersor_reference_distance", **DEMO) or 0) < 0.5  # four bits are not 16
        net = {"model": "twice", "variant": "quantized"}
        assert metric(gateway, "tersor_agreement_ratio", **net) == 1
        assert metric(gateway, "tersor_reference_distance", **net) == 0
    assert set(client.variants) == {"small"}


def test_a_hung_reference_holds_nobody_up_and_what_was_not_compared_is_counted(folder: Path) -> None:
    (folder / "deploy.yaml").write_text(YAML.format(primary="small", share=100))
    with live(folder / "deploy.yaml") as gateway, Client(gateway) as client:
        pids = gateway.engines("full.gguf")
        assert len(pids) == 1
        os.kill(pids[0], signal.SIGSTOP)
        for _ in range(90):
            client.ask()
        assert (set(client.statuses), set(client.variants)) == ({200}, {"small"})
        assert (metric(gateway, "tersor_shadow_dropped_total", reason="full", **DEMO) or 0) > 0
        os.kill(pids[0], signal.SIGCONT)


def test_nothing_is_asked_twice_where_nobody_says_so(folder: Path) -> None:
    (folder / "deploy.yaml").write_text(YAML.format(primary="small", share=0))
    with live(folder / "deploy.yaml") as gateway, Client(gateway) as client:
        client.ask()
        assert metric(gateway, "tersor_shadow_compared_total", **DEMO) is None
    (folder / "deploy.yaml").write_text(YAML.format(primary="small", share=101))
    with pytest.raises(SchemeError, match="compare: a share of requests, percent"):
        read_deployment(folder / "deploy.yaml")
