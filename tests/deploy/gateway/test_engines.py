"""Engines beside llama.cpp and ONNX Runtime behind the gateway."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tersor import reference_model

from .conftest import live
from .test_faults import BODY, asked, engine_of

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
