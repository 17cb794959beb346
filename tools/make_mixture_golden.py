"""Record which tensor type real llama.cpp gives to every tensor, for tests/containers/test_mixtures.py.

What: builds tiny GGUF files (many layer counts, attention shapes, experts, fused and odd rows), lets
`llama_model_quantize` quantize each to every file type, reads the types back from the result, and
writes them, run-length coded, to tests/containers/golden/mixtures.json.

Why: the mixture rules are folklore inside one C++ function that changes between releases. The table of
tersor is checked against what the real tool did, not against a reading of its source.

How: needs llama-cpp-python and gguf in an environment of their own (nothing of tersor is imported):

    python tools/make_mixture_golden.py
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "containers" / "golden" / "mixtures.json"
ROWS = 2  # enough for a matrix; the choice depends on columns alone

FILE_TYPES = {
    "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9,
    "q2_k": 10, "q2_k_s": 21, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15,
    "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "tq1_0": 36, "tq2_0": 37,
    "mxfp4_moe": 38,
}  # fmt: skip
WITH_IMPORTANCE = ("q4_0", "q5_0", "q2_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
PURE = ("q4_0", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "tq2_0")


@dataclass(frozen=True)
class Case:
    """One tiny model; the fields are those that a mixture rule can ask for."""

    architecture: str = "llama"
    layers: int = 2
    heads: int = 8
    kv_heads: int = 8
    experts: int = 0
    tied: bool = False
    fused: bool = False
    shared: bool = False
    hidden: int = 256
    feed_forward: int = 512


def cases() -> list[Case]:
    """Every model shape that is tried."""
    plain = [Case(layers=n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 28, 32, 33)]
    tied = [Case(layers=n, tied=True) for n in (1, 2, 9, 32)]
    grouped = [Case(layers=n, kv_heads=kv) for n in (2, 17, 32) for kv in (4, 2, 1)]
    experts = [Case(layers=n, kv_heads=2, experts=8) for n in (1, 4, 8, 16, 32)]
    experts += [Case(layers=8, experts=4), Case(layers=9, kv_heads=2, experts=8, hidden=288, feed_forward=96)]
    fused = [Case("phi3", n, kv_heads=kv, fused=True) for n in (2, 8, 32, 33) for kv in (8, 2)]
    large = [Case("llama", 80, kv_heads=1), Case("llama", 80), Case("qwen2", 80, kv_heads=1)]
    others = [Case("qwen2", 24, kv_heads=1, tied=True), Case("qwen3", 28, kv_heads=4), Case("gemma2", 26, tied=True)]
    others += [Case("qwen2moe", 24, experts=60, shared=True)]
    others += [Case("gemma3", 26, kv_heads=4, tied=True), Case("qwen3moe", 12, kv_heads=2, experts=128)]
    odd = [
        Case(layers=9, hidden=hidden, feed_forward=ff, tied=tie)
        for hidden, ff in ((288, 864), (256, 688), (200, 352), (288, 172))
        for tie in (False, True)
    ]
    return plain + tied + grouped + experts + fused + large + others + odd


def tensors(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and NumPy shapes of the tensors of `case`, in an order that is not llama.cpp's own."""
    hidden, ff = case.hidden, case.feed_forward
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (hidden,), "token_embd.weight": (ROWS, hidden)}
    if not case.tied:
        shapes["output.weight"] = (ROWS, hidden)
    for layer in reversed(range(case.layers)):
        block: dict[str, tuple[int, ...]] = {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
        parts = ("attn_qkv",) if case.fused else ("attn_q", "attn_k", "attn_v")
        block |= dict.fromkeys((*parts, "attn_output"), (ROWS, hidden))
        if case.experts:
            block |= dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (case.experts, ROWS, hidden))
            block |= {"ffn_down_exps": (case.experts, ROWS, ff), "ffn_gate_inp": (case.experts, hidden)}
            if case.shared:
                block |= dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), (ROWS, hidden))
                block |= {"ffn_down_shexp": (ROWS, ff)}
        else:
            block |= dict.fromkeys(("ffn_up",) if case.fused else ("ffn_gate", "ffn_up"), (ROWS, hidden))
            block |= {"ffn_down": (ROWS, ff)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def write_source(case: Case, path: Path) -> dict[str, tuple[int, ...]]:
    """Write `case` as an F32 GGUF and return its tensors."""
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(case.hidden)
    writer.add_block_count(case.layers)
    writer.add_feed_forward_length(case.feed_forward)
    writer.add_head_count(case.heads)
    writer.add_head_count_kv(case.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(ROWS)
    writer.add_sliding_window(64)
    if case.experts:
        writer.add_expert_count(case.experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(case.feed_forward)
    shapes = tensors(case)
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return shapes


def importance_of(shapes: dict[str, tuple[int, ...]]) -> ctypes.Array[ctypes.Structure]:
    """Return a flat importance for every matrix, in the form that the C interface takes."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    entries: ctypes.Array[ctypes.Structure] = (llama_cpp.llama_model_imatrix_data * (len(matrices) + 1))()
    for entry, (name, shape) in zip(entries, matrices.items(), strict=False):
        size = shape[-1] * (shape[0] if len(shape) == 3 else 1)
        entry.name, entry.size = name.encode(), size
        entry.data = (ctypes.c_float * size)(*[1.0] * size)
    return entries


def quantize(
    source: Path, target: Path, file_type: int, *, pure: bool, importance: ctypes.Array[ctypes.Structure] | None
) -> dict[str, str] | None:
    """Return the type of every tensor after real llama.cpp quantized `source`; None where it refuses."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype, options.pure = 1, file_type, pure
    if importance is not None:
        options.imatrix = ctypes.cast(importance, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if status != 0:
        return None
    return {str(t.name): t.tensor_type.name.lower() for t in gguf.GGUFReader(target).tensors}


def compact(types: dict[str, str], layers: int) -> dict[str, str]:
    """Return run-length coded lines, kinds with equal ones together: {"attn_v,ffn_down": "q6_k*4 q4_k*8"}."""
    lines = {name.removesuffix(".weight"): kind for name, kind in types.items() if not name.startswith("blk.")}
    for kind in {name.split(".")[2] for name in types if name.startswith("blk.")}:
        row = [types[f"blk.{layer}.{kind}.weight"] for layer in range(layers)]
        lines[kind] = " ".join(f"{name}*{len(list(run))}" for name, run in itertools.groupby(row))
    kinds = sorted(kind for kind in lines if "norm" not in kind)
    return {",".join(k for k in kinds if lines[k] == line): line for line in sorted({lines[k] for k in kinds})}


def record(case: Case, folder: Path) -> dict[str, dict[str, str] | None]:
    """Quantize `case` in every way; keys are "q4_k_m", "q4_k_m pure" and "q4_k_m importance"."""
    source, target = folder / "source.gguf", folder / "target.gguf"
    shapes = write_source(case, source)
    importance = importance_of(shapes)
    runs = [(name, False, False) for name in FILE_TYPES]
    runs += [(name, True, False) for name in PURE] + [(name, False, True) for name in WITH_IMPORTANCE]
    results: dict[str, dict[str, str] | None] = {}
    for name, pure, weighted in runs:
        types = quantize(source, target, FILE_TYPES[name], pure=pure, importance=importance if weighted else None)
        key = name + " pure" * pure + " importance" * weighted
        results[key] = None if types is None else compact(types, case.layers)
    return results


def main() -> None:
    """Record every case and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(silent, None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            rows.append({"case": asdict(case), "types": record(case, Path(folder))})
            print(f"{len(rows)}/{len(cases())} {case}", flush=True)
    versions = {name: version(name) for name in ("llama-cpp-python", "gguf", "numpy")}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    head = f'{{"made_by": "tools/make_mixture_golden.py", "versions": {json.dumps(versions)}, "cases": ['
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(f"{head}\n{lines}\n]}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
