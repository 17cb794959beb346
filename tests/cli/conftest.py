"""Running commands in this process, and a model for them that needs no torch to make."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from tersor.cli.main import main
from tersor.containers.gguf import write_gguf
from tersor.core.metadata import MetadataEntry as Entry
from tersor.core.plan import PlannedTensor

HIDDEN, VOCABULARY = 256, 300


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that stdout must be."""
        return json.loads(self.out)


Run: TypeAlias = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs `tersor …` and returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of random bf16 weights: a Llama of one block."""
    path = tmp_path_factory.mktemp("source") / "tiny.gguf"
    keys = {"context_length": 64, "embedding_length": HIDDEN, "block_count": 1, "feed_forward_length": 320}
    keys |= {"attention.head_count": 4, "attention.head_count_kv": 4, "rope.dimension_count": 64}
    letters = [chr(index) if 33 <= index < 127 else chr(0x200 + index) for index in range(VOCABULARY)]
    metadata = {
        "general.architecture": Entry("llama", "str"),
        "general.name": Entry("tiny", "str"),
        **{f"llama.{key}": Entry(value, "u32") for key, value in keys.items()},
        "llama.attention.layer_norm_rms_epsilon": Entry(1e-5, "f32"),
        "tokenizer.ggml.model": Entry("gpt2", "str"),
        "tokenizer.ggml.pre": Entry("gpt-2", "str"),
        "tokenizer.ggml.tokens": Entry(list(letters), "[str]"),
        "tokenizer.ggml.token_type": Entry([1] * VOCABULARY, "[i32]"),
        "tokenizer.ggml.merges": Entry(["a b"], "[str]"),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes |= {f"blk.0.{name}_norm.weight": (HIDDEN,) for name in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}.weight": (320, HIDDEN) for name in ("gate", "up")}
    shapes["blk.0.ffn_down.weight"] = (HIDDEN, 320)
    random = np.random.default_rng(4)
    rows, chunks = [], []
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32) / 16
        rows.append(PlannedTensor(name, shape, "F32", "f32", "", "", values.nbytes))
        chunks.append((name, values.view(np.uint8)))
    write_gguf(path, metadata, rows, chunks)
    return path
