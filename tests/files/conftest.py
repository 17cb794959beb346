"""Small sound files, and the bytes of broken ones."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest


@pytest.fixture
def sound_gguf(tmp_path: Path) -> Path:
    """Return a GGUF with a key of each kind and three tensors, written by the `gguf` package."""
    path = tmp_path / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -30_000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_float32("a.f32", 0.5)
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.str", "żółw 🐢")
    writer.add_array("a.[str]", ["", "ab", "ü", "🐢" * 50])
    writer.add_array("a.[i32]", [1, -2, 3])
    writer.add_array("a.[f32]", [0.5, 1.5])
    writer.add_array("a.[bool]", [True, False])
    random = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", random.standard_normal((6, 32), dtype=np.float32))
    writer.add_tensor(
        "blk.0.ffn_gate_exps.weight", random.standard_normal((2, 3, 5), dtype=np.float32).astype(np.float16)
    )
    quantized = gguf.quants.quantize(random.standard_normal((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.ffn_up.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
