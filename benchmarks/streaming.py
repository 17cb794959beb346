"""Memory and time of quantizing a checkpoint larger than what may be held: is the work really streamed?

Makes a random Llama-shaped bf16 checkpoint in a temporary folder, quantizes it in a child process, and prints
- peak memory of that child above the peak of a child that only imports the same libraries,
- wall time, and its ratio to reading + encoding + writing the same rows one after the other in a third child.

    python benchmarks/streaming.py [--gib 2] [--format q4_k_m] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tersor import reference_model
from tersor.core.quantities import size
from tersor.formats import FORMATS
from tersor.kernels import codec
from tersor.models.load import load
from tersor.pipeline.quantize import quantize, slices_of
from tersor.pipeline.steps.planning import make_plan
from tersor.pipeline.steps.provenance import peak_memory_bytes

HIDDEN, FEED_FORWARD, HEADS, VOCABULARY = 2048, 5632, 32, 32_000
SHARDS = 4
MEMORY_LIMIT_MIB, RATIO_LIMIT = 600, 1.3


def checkpoint_tensors(gib: float) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of as many Llama layers as make about `gib` GiB in bf16."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    ends = 2 * VOCABULARY * HIDDEN
    layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FEED_FORWARD
    for index in range(max(1, round((gib * 2**29 - ends) / layer))):
        prefix = f"model.layers.{index}"
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = shapes[f"{prefix}.mlp.up_proj.weight"] = (FEED_FORWARD, HIDDEN)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, FEED_FORWARD)
        shapes[f"{prefix}.input_layernorm.weight"] = shapes[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_shard(
    path: Path, shapes: dict[str, tuple[int, ...]], pool: np.ndarray[tuple[int], np.dtype[np.uint16]]
) -> None:
    """Write tensors as one safetensors file, a row of the pool at a time."""
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(shapes.values()):
            left, start = int(np.prod(shape)), 4097 * number % pool.size
            while left:
                piece = pool[start : start + left]
                file.write(piece.data.cast("B"))
                left, start = left - piece.size, 0


def make_checkpoint(folder: Path, gib: float) -> int:
    """Write the checkpoint into `folder` and return its bytes of weights."""
    shapes = checkpoint_tensors(gib)
    values = np.random.default_rng(0).standard_t(6, 1 << 24).astype(np.float32) * np.float32(0.02)
    pool = (values.view(np.uint32) >> 16).astype(np.uint16)
    names = list(shapes)
    index: dict[str, str] = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[len(names) * number // SHARDS : len(names) * (number + 1) // SHARDS]
        write_shard(folder / file, {name: shapes[name] for name in part}, pool)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    source = Path(reference_model.__file__).parent
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "vocab_size": VOCABULARY}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "tie_word_embeddings": False}
    config |= {"num_hidden_layers": sum("q_proj" in name for name in names), "head_dim": HIDDEN // HEADS}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def child_import() -> dict[str, float]:
    """Load every library that the work needs, the kernels included, and do none of it."""
    FORMATS["q8_0"].decode(FORMATS["q8_0"].encode(np.ones((1, 32), np.float32), search="ggml"), 32)
    return {}


def child_quantize(source: Path, output: Path, name: str, search: str) -> dict[str, float]:
    """Quantize as a user would."""
    start = time.perf_counter()
    card = quantize(load(source), name, output, search=search)
    stages = {f"{key}_s": getattr(card.seconds, key) for key in ("reading", "encoding", "measuring", "writing")}
    return {"wall_s": time.perf_counter() - start, "bytes": card.nbytes, "weights": card.plan.weights, **stages}


def child_apart(source: Path, output: Path, name: str, search: str) -> dict[str, float]:
    """Read, encode and write every slice, one stage at a time, each with its own clock."""
    model = load(source)
    plan = make_plan(model, name, search=search)
    reading = encoding = writing = 0.0
    with output.open("wb") as file:
        for tensor, planned in zip(model.tensors, plan.tensors, strict=True):
            for begin, end in slices_of(tensor):
                start = time.perf_counter()
                weight = tensor.read(begin, end)
                read = time.perf_counter()
                data = FORMATS[planned.format].encode(weight, search=search)
                encoded = time.perf_counter()
                file.write(data.data.cast("B"))
                written = time.perf_counter()
                reading, encoding, writing = (
                    reading + read - start,
                    encoding + encoded - read,
                    writing + written - encoded,
                )
        start = time.perf_counter()
        file.flush()
        os.fsync(file.fileno())
    return {"reading_s": reading, "encoding_s": encoding, "writing_s": writing + time.perf_counter() - start}


def run_child(kind: str, *arguments: str) -> dict[str, float]:
    """Run one of the functions above in a process of its own and return what it found, with its peak memory."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(gib: float, name: str, search: str, repeats: int) -> dict[str, object]:
    """Return all figures of one checkpoint; times are medians over `repeats`, apart and together in turn."""
    with tempfile.TemporaryDirectory(prefix="tersor-streaming-") as name_of_folder:
        folder = Path(name_of_folder) / "model"
        folder.mkdir()
        nbytes = make_checkpoint(folder, gib)
        idle = run_child("import")
        together, apart = [], []
        for _ in range(repeats):
            output = folder.parent / "apart.bin"
            apart.append(run_child("apart", str(folder), str(output), name, search))
            output.unlink()
            together.append(run_child("quantize", str(folder), str(folder.parent / "m.gguf"), name, search))
    wall = statistics.median(row["wall_s"] for row in together)
    sums = {key: statistics.median(row[key] for row in apart) for key in ("reading_s", "encoding_s", "writing_s")}
    above = max(row["peak"] for row in together) - idle["peak"]
    return {
        "format": name,
        "search": search,
        "kernels": codec.backend().partition(":")[0],
        "source_bytes": nbytes,
        "output_bytes": together[0]["bytes"],
        "weights": together[0]["weights"],
        "peak_above_imports_mib": above / 2**20,
        "imports_mib": idle["peak"] / 2**20,
        "wall_s": wall,
        "apart_s": {**sums, "sum_s": sum(sums.values())},
        "ratio": wall / sum(sums.values()),
        "within": {"memory": above / 2**20 <= MEMORY_LIMIT_MIB, "time": wall / sum(sums.values()) <= RATIO_LIMIT},
    }


def show(found: dict[str, object]) -> None:
    """Print the figures for people."""
    apart = found["apart_s"]
    assert isinstance(apart, dict)
    nbytes, written = found["source_bytes"], found["output_bytes"]
    assert isinstance(nbytes, int)
    assert isinstance(written, int)
    print(f"{size(nbytes)} bf16 → {found['format']} ({found['search']} search), {size(written)}; {found['kernels']}")
    print(f"peak memory above imports  {found['peak_above_imports_mib']:8.0f} MiB   (limit {MEMORY_LIMIT_MIB})")
    print(f"wall time                  {found['wall_s']:8.2f} s")
    print(f"reading + encoding + writing apart {apart['sum_s']:.2f} s = {apart['reading_s']:.2f} + "
          f"{apart['encoding_s']:.2f} + {apart['writing_s']:.2f}")  # fmt: skip
    print(f"ratio                      {found['ratio']:8.2f}       (limit {RATIO_LIMIT})")


def main() -> None:
    """Measure and print; or do the work of a child."""
    if sys.argv[1:2] == ["--child"]:
        kind, *rest = sys.argv[2:]
        if kind == "import":
            found = child_import()
        else:
            work = child_quantize if kind == "quantize" else child_apart
            found = work(Path(rest[0]), Path(rest[1]), rest[2], rest[3])
        print(json.dumps({**found, "peak": peak_memory_bytes() or 0}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--format", default="q4_k_m")
    parser.add_argument("--search", default="best", choices=codec.SEARCHES)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    figures = measure(arguments.gib, arguments.format, arguments.search, arguments.repeats)
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)


if __name__ == "__main__":
    main()
