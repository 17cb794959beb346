"""A 4-bit language model that generates on the CPU: GPTQ in PyTorch on our kernels, bfloat16 in PyTorch, llama.cpp.

    python benchmarks/decode_cpu.py [--threads 2] [--rounds 9] [--steps 16] [--shapes 2048x5632x12 …]
        [--before 32 1024] [--json]

A shape is hidden size x inner size x blocks of a Llama with a vocabulary of 32000; `before` are the tokens in the cache
when a round begins. Weights are random numbers, which changes no speed: one checkpoint in bfloat16, the same matrices
rounded and written as GPTQ (int4, groups of 128, symmetric), and a GGUF with random blocks of Q4_0 and an output matrix
in Q6_K, as llama.cpp makes Q4_0 files. Every engine has a process of its own that times itself; they generate in turn,
round after round. `it/ours` is the median over rounds of the engine's time a token by that of our kernels with a
rounded output matrix: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from tersor.containers.hf.writer import write_checkpoint
from tersor.core.arrays import Bytes
from tersor.core.tensor import QuantizedTensor
from tersor.engines.llama_cpp import LlamaCpp
from tersor.engines.transformers_timing import TransformersTiming
from tersor.evaluation.speed.runners import Engine
from tersor.files.checkpoint import Checkpoint
from tersor.formats import get
from tersor.kernels import codec
from tersor.pipeline.steps.provenance import machine
from tersor.targets.processor import busy_cores
from tersor.targets.roofs import measure_roofs

VOCABULARY, HEAD, SEED = 32000, 64, 1


@dataclass(frozen=True)
class Shape:
    """Of a Llama: sizes and number of blocks; a fourth of the heads have keys and values."""

    hidden: int
    inner: int
    blocks: int

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.hidden // HEAD

    @property
    def weights(self) -> int:
        """Numbers in all matrices."""
        block = self.hidden * (2 * self.hidden + self.hidden // 2 + 3 * self.inner)
        return self.blocks * block + 2 * VOCABULARY * self.hidden


@dataclass(frozen=True)
class Row:
    """What was seen of one engine on one shape."""

    shape: str
    before: int
    engine: str
    milliseconds: float
    tokens_per_s: float
    it_by_ours: float
    loaded_bytes: int

    def shown(self) -> str:
        """The row as text."""
        return (
            f"{self.engine:44} {self.milliseconds:9.2f} {self.tokens_per_s:9.1f} {self.it_by_ours:8.2f} "
            f"{self.loaded_bytes / 2**20:8.0f}"
        )


HEADING = f"{'engine':44} {'ms/token':>9} {'tokens/s':>9} {'it/ours':>8} {'MiB':>8}"


def save_float(shape: Shape, folder: Path) -> None:
    """Write the checkpoint in bfloat16."""
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.blocks, vocab_size=VOCABULARY,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads // 4, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(SEED)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def save_gptq(source: Path, folder: Path) -> None:
    """Round the matrices of the blocks and write them as GPTQ."""
    fmt = get("int4-g128-sym-bf16")
    with contextlib.closing(Checkpoint([source / "model.safetensors"])) as checkpoint:
        formats = {name: fmt for name in checkpoint.tensors if name.endswith("proj.weight")}

        def rounded() -> Iterator[tuple[str, QuantizedTensor]]:
            for name in formats:
                weight = np.asarray(checkpoint.read(name), np.float32)
                yield name, QuantizedTensor(fmt, weight.shape, fmt.encode(weight))

        write_checkpoint(source, checkpoint, formats, rounded(), folder, name="gptq")


def save_gguf(shape: Shape, path: Path) -> None:
    """Write random blocks: Q4_0, the output matrix in Q6_K."""
    random, writer = np.random.default_rng(SEED), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads // 4)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")

    def blocks(rows: int, columns: int, name: str, halves: tuple[int, ...]) -> Bytes:
        fmt = get(name)
        data = random.integers(0, 256, (rows, columns // fmt.block, fmt.block_bytes), np.uint8)
        for place in halves:  # the scales of binary16: a small number, never NaN
            data[..., place : place + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
        return data.reshape(rows, -1)

    def add(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, blocks(rows, columns, "q4_0", (0,)), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    hidden, inner = shape.hidden, shape.inner
    add("token_embd.weight", VOCABULARY, hidden)
    output = blocks(VOCABULARY, hidden, "q6_k", (208,))
    writer.add_tensor("output.weight", output, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for block in range(shape.blocks):
        sizes = {"attn_q": hidden, "attn_k": hidden // 4, "attn_v": hidden // 4, "attn_output": hidden}
        for name, rows in {**sizes, "ffn_gate": inner, "ffn_up": inner}.items():
            add(f"blk.{block}.{name}.weight", rows, hidden)
        add(f"blk.{block}.ffn_down.weight", hidden, inner)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def opened(folder: Path, threads: int, stack: contextlib.ExitStack) -> dict[str, Engine]:
    """Start every engine with its file; ours first."""
    found: dict[str, Callable[[], Any]] = {
        "tersor GPTQ int4, output int8, in PyTorch": lambda: TransformersTiming(
            folder / "gptq", threads=threads, loading={"round_head": True}
        ),
        "tersor GPTQ int4, output bfloat16, in PyTorch": lambda: TransformersTiming(folder / "gptq", threads=threads),
        "PyTorch bfloat16": lambda: TransformersTiming(folder / "float", threads=threads),
        "llama.cpp Q4_0": lambda: LlamaCpp(folder / "q4_0.gguf", context=0, threads=threads),
    }
    return {name: stack.enter_context(make()) for name, make in found.items()}


def measured(text: str, before: int, options: argparse.Namespace) -> list[Row]:
    """Write the files of one shape, and time every engine on them."""
    shape = Shape(*map(int, text.split("x")))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        save_float(shape, folder / "float")
        save_gptq(folder / "float", folder / "gptq")
        save_gguf(shape, folder / "q4_0.gguf")
        engines = opened(folder, options.threads, stack)
        length = before + options.steps + 1
        prompt = [[int(token) for token in np.random.default_rng(SEED).integers(0, VOCABULARY, before)]]
        loaded = {
            name: engine.timed("time_open", sequences=1, context=length, threads=options.threads)["loaded_bytes"]
            for name, engine in engines.items()
        }
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(options.rounds + 1):
            for name, engine in engines.items():
                engine.timed("time_prompt", sequences=1, prompts=prompt)
                made = engine.timed("time_generation", sequences=1, steps=options.steps)
                if number:  # the first round wakes everything up
                    times[name].append(median(made["step_ns"]) / 1e6)
    first = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratio = median(its / ours for its, ours in zip(own, first, strict=True))
        rows.append(Row(text, before, name, median(own), 1e3 / median(own), ratio, loaded[name]))
    return rows


def main() -> None:
    """Measure and print, each table when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16, help="tokens generated in a round")
    parser.add_argument("--shapes", nargs="*", default=["2048x5632x12", "4096x11008x3"])
    parser.add_argument("--before", nargs="*", type=int, default=[32, 1024], help="tokens in the cache")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of the tables")
    options = parser.parse_args()
    about = {
        "machine": machine(), "threads": options.threads, "kernels": codec.backend(), "torch": torch.__version__,
        "read GB/s": round(measure_roofs(options.threads).read_bytes_per_s / 1e9, 1), "load": busy_cores(),
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows: list[Row] = []
    for text, before in product(options.shapes, options.before):
        found = measured(text, before, options)
        rows += found
        if not options.json:
            weights = Shape(*map(int, text.split("x"))).weights
            print(f"\n{text}: {weights / 1e6:.0f} million weights, {before} tokens before\n{HEADING}")
            print("\n".join(row.shown() for row in found), flush=True)
    if options.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
