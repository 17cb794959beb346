"""More than 10 000 mutated headers: each is opened or refused on purpose, in under a second and 200 MB."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through Linux's RLIMIT_AS")
SCRIPT = Path(__file__).with_name("mutate_headers.py")


def sample_gguf(folder: Path, split: bool = False) -> None:
    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=1 if split else 0)
    writer.add_context_length(64)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "żółw"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sample_safetensors(folder: Path) -> None:
    tensors: dict[str, Any] = {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float16)}
    tensors["c"] = np.ones((2, 2, 2), np.int64)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def sample_shards(folder: Path) -> None:
    for index in (1, 2):
        save_file({f"t{index}": np.ones(3, np.float32)}, folder / f"model-{index}.safetensors")
    weight_map = {f"t{index}": f"model-{index}.safetensors" for index in (1, 2)}
    content = json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def sample_torch(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, folder / "pytorch_model.bin")


def sample_model(folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5, "vocab_size": 10, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8),
        "self_attn.o_proj": (8, 8), "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
        "input_layernorm": (8,), "post_attention_layernorm": (8,),
    }  # fmt: skip
    tensors = {f"model.layers.0.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    tensors |= {"model.embed_tokens.weight": np.ones((10, 8), np.float32), "model.norm.weight": np.ones(8, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


SAMPLES: dict[str, tuple[str, Callable[[Path], Any], int]] = {
    "gguf": ("gguf", sample_gguf, 8000),
    "split gguf": ("gguf", lambda folder: sample_gguf(folder, split=True), 3000),
    "safetensors": ("safetensors", sample_safetensors, 8000),
    "shards": ("shards", sample_shards, 3000),
    "torch": ("torch", sample_torch, 500),
    "model": ("model", sample_model, 6000),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder in memory where there is one: thousands of small writes are slow on some disks."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.mark.parametrize("case", SAMPLES)
def test_every_mutant_is_opened_or_refused_on_purpose_within_bounds(case: str, folder: Path) -> None:
    kind, sample, count = SAMPLES[case]
    sample(folder)
    result = run(folder, kind, count)
    assert result["opened"] + result["refused"] == count
    assert result["refused"] > count // 4
    assert result["longest_s"] < 1.0


def test_more_than_ten_thousand_headers_are_mutated() -> None:
    assert sum(count for _, _, count in SAMPLES.values()) >= 10_000


def run(folder: Path, kind: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), kind, str(count), "20261124"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert child.returncode == 0, child.stderr[-2000:]
    result: dict[str, Any] = json.loads(child.stdout)
    return result


BOMBS = {
    "an array of strings as long as may be": lambda: (
        header_of_key(9, struct.pack("<IQ", 8, 2_400_000)) + struct.pack("<QB", 1, 97) * 2_400_000
    ),
    "an array of bytes beyond the limit": lambda: header_of_key(9, struct.pack("<IQ", 0, 6 * 10**7)) + bytes(6 * 10**7),
    "a string beyond the limit of the header": lambda: header_of_key(8, struct.pack("<Q", 2**27)) + bytes(2**27),
    "a hundred thousand tensors": lambda: b"GGUF" + struct.pack("<IQQ", 3, 100_000, 0) + b"".join(
        struct.pack("<Q8sIQIQ", 8, b"%08d" % index, 1, 8, 0, 32 * index) for index in range(100_000)
    ),
}  # fmt: skip


def header_of_key(kind: int, value: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<QsI", 1, b"k", kind) + value


@pytest.mark.parametrize("case", BOMBS)
def test_a_large_hostile_header_stays_within_200_megabytes(case: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.gguf").write_bytes(BOMBS[case]())
    script = (
        "import sys, time, resource, pathlib\n"
        "from tersor.core.errors import TersorError\n"
        "from tersor.files.gguf import GgufFile\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, used + 200 * 2**20))\n"
        "start = time.process_time()\n"
        "try:\n"
        "    GgufFile(pathlib.Path(sys.argv[1]))\n"
        "except TersorError as error:\n"
        "    print(error)\n"
        "print(time.process_time() - start)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "bomb.gguf")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    assert float(child.stdout.split()[-1]) < 2.0
