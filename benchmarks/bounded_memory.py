"""Memory and time of a calibrated run on a model that is larger than what may be held.

Writes a random checkpoint of Llama shape in bf16, a block at a time (about 3 B parameters, 6 GB, unless --gib says
less), runs `tersor quantize --method gptq` on it as a child process, watches the memory of that process, and prints
- its peak, and how the peak grew from block to block,
- time for each layer and its parts,
- what the same run would need for the shapes of 7 B and 70 B models:

      peak = imports + k · working(shape) + growth · layers

  where working(shape) is what the plan of the run counts (three times the weights of a block in float32, the sums over
  its inputs, Hessian and factors of the widest one, activations of one chunk, hidden states of all sequences), k is
  what was measured here over that figure for the shape that ran, and growth is the measured growth for each block.

    python benchmarks/bounded_memory.py [--gib 5.7] [--format q4_k_m] [--method gptq] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tersor import reference_model
from tersor.calibrate.workspace import workspace_path
from tersor.core.quantities import size
from tersor.files.safetensors_writer import SafetensorsWriter, StoredTensor
from tersor.targets.memory import footprint

LIMIT_GIB = 4.0
EVERY_S = 0.02
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A Llama; `kv` are the columns of all key heads."""

    name: str
    hidden: int
    inner: int
    layers: int
    kv: int
    vocabulary: int = 32_000
    head: int = 128

    @property
    def block(self) -> int:
        """Weights of one block."""
        return 2 * self.hidden * (self.hidden + self.kv) + 3 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """Weights of all."""
        return self.layers * self.block + 2 * self.vocabulary * self.hidden

    def working(self, tokens: int, chunk: int) -> int:
        """Bytes that a run over `tokens` tokens, `chunk` of them at once, needs beyond the program itself."""
        sums = 8 * (3 * self.hidden**2 + self.inner**2)
        widest = max(self.hidden, self.inner)
        forward = 4 * chunk * (6 * self.hidden + 3 * widest)
        return 3 * 4 * self.block + sums + 4 * 6 * widest**2 + forward + 4 * tokens * self.hidden

    def tensors(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """File → name → shape: one file for each block, and one for the ends."""
        ends: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        ends |= {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}
        files = {f"model-00001-of-{self.layers + 1:05d}.safetensors": ends}
        rows = {"self_attn.q": self.hidden, "self_attn.k": self.kv, "self_attn.v": self.kv, "self_attn.o": self.hidden}
        rows |= {"mlp.gate": self.inner, "mlp.up": self.inner}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            block: dict[str, tuple[int, ...]] = {f"{prefix}{k}_proj.weight": (n, self.hidden) for k, n in rows.items()}
            block[f"{prefix}mlp.down_proj.weight"] = (self.hidden, self.inner)
            block |= {f"{prefix}{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
            files[f"model-{layer + 2:05d}-of-{self.layers + 1:05d}.safetensors"] = block
        return files


MEASURED = Shape("3 B", 3072, 8192, 28, 1024)
LARGER = (Shape("7 B", 4096, 11008, 32, 4096), Shape("70 B", 8192, 28672, 80, 1024, 128_256))


def make_checkpoint(folder: Path, shape: Shape) -> int:
    """Write the checkpoint and return its bytes of weights; only one tensor is ever in memory."""
    random = np.random.default_rng(0)
    index: dict[str, str] = {}
    for name, tensors in shape.tensors().items():
        stored = [StoredTensor(tensor, "BF16", places) for tensor, places in tensors.items()]
        with (folder / name).open("wb") as file:
            writer = SafetensorsWriter(file, stored, {"format": "pt"})
            for tensor, places in tensors.items():
                writer.write(tensor, _random(random, places))
            writer.finish()
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    source = Path(reference_model.__file__).parent
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": shape.hidden, "intermediate_size": shape.inner, "vocab_size": shape.vocabulary}
    config |= {"num_attention_heads": shape.hidden // shape.head, "num_key_value_heads": shape.kv // shape.head}
    config |= {"num_hidden_layers": shape.layers, "head_dim": shape.head, "tie_word_embeddings": False}
    config |= {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _random(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Weights as bf16 that keep the size of activations; norms of one."""
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)
    values = random.standard_normal(shape, dtype=np.float32)
    values *= np.float32(shape[1] ** -0.5)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class Watched:
    """What was seen of a process: seconds and peak bytes when each block was done, and at the end."""

    blocks: tuple[tuple[float, int], ...]
    seconds: float
    peak: int


def watch(process: subprocess.Popen[bytes], work: Path) -> Watched:
    """Look at a running process until it ends."""
    began, peak = time.perf_counter(), 0
    blocks: list[tuple[float, int]] = []
    while process.poll() is None:
        found = footprint(process.pid)
        if found is not None:
            peak = max(peak, found.peak or found.resident)
        done = len(list(work.glob("block-*.bin"))) if work.is_dir() else len(blocks)
        for number in range(len(blocks), done):
            blocks.append((time.perf_counter() - began, peak))
            print(f"block {number + 1}: {blocks[-1][0]:.0f} s, peak {size(peak)}", file=sys.stderr, flush=True)
        time.sleep(EVERY_S)
    return Watched(tuple(blocks), time.perf_counter() - began, peak)


def imports_peak() -> int:
    """Peak of a process that imports what the run needs and does nothing with it."""
    program = (
        "import torch, tokenizers, tersor.cli.main; torch.ones(64, 64) @ torch.ones(64, 64)\n"
        "from tersor.pipeline.steps.provenance import peak_memory_bytes as peak; print(peak() or 0)"
    )
    return int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout)


def run(folder: Path, output: Path, options: argparse.Namespace) -> tuple[Watched, dict[str, Any]]:
    """Quantize as a user would; return what was seen and the Card."""
    command = [sys.executable, "-m", "tersor", "quantize", str(folder), "-o", str(output), "--json"]
    command += ["--format", options.format, "--method", options.method, "--calibration", options.calibration]
    command += ["--calibration-sequences", str(options.calibration_sequences), "--force"]
    command += ["--calibration-length", str(options.calibration_length)]
    command += ["--calibration-chunk", str(options.calibration_chunk), "--device", options.device]
    with tempfile.TemporaryFile() as said:
        watched = _watched(command, said, output)
        said.seek(0)
        card: dict[str, Any] = json.load(said)
    return watched, card


def _watched(command: list[str], said: IO[bytes], output: Path) -> Watched:
    with subprocess.Popen(command, stdout=said) as process:
        try:
            watched = watch(process, workspace_path(output))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        sys.exit(f"the run ended with exit code {process.returncode}")
    return watched


def parts(card: dict[str, Any]) -> dict[str, float]:
    """Seconds of each part of the run, as its Card tells them."""
    note = next(note for note in card["notes"] if note.startswith("calibration took, in seconds: "))
    return {name: float(value) for name, value in re.findall(r"([a-z ]+) (\d+\.\d+)", note.partition(": ")[2])}


def figures(shape: Shape, watched: Watched, card: dict[str, Any], idle: int, options: argparse.Namespace) -> Any:
    """All that is printed."""
    times = [seconds for seconds, _ in watched.blocks]
    layers = [after - before for before, after in itertools.pairwise(times)][: shape.layers - 1]
    settled = [peak for _, peak in watched.blocks[1 : shape.layers]]  # the first block warms caches up
    growth = (settled[-1] - settled[0]) / (len(settled) - 1) if len(settled) > 1 else 0.0
    chunk = options.calibration_chunk * options.calibration_length
    tokens = options.calibration_sequences * options.calibration_length
    k = (watched.peak - idle - growth * shape.layers) / shape.working(tokens, chunk)
    usual, at_once = 128 * 512, options.calibration_chunk * 512
    return {
        "parameters": shape.parameters,
        "format": options.format,
        "method": options.method,
        "tokens": tokens,
        "imports_bytes": idle,
        "peak_bytes": watched.peak,
        "planned": next((note for note in card["notes"] if "planned peak" in note), ""),
        "growth_bytes_per_layer": growth,
        "k": k,
        "seconds": watched.seconds,
        "seconds_per_layer": float(np.median(layers)) if layers else None,
        "parts_seconds_per_layer": {name: value / shape.layers for name, value in parts(card).items()},
        "extrapolated_bytes": {
            one.name: idle + k * one.working(usual, at_once) + growth * one.layers for one in LARGER
        },
        "within": watched.peak <= LIMIT_GIB * GIB,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print the figures for people."""
    print(f"{found['parameters'] / 1e9:.2f} B parameters → {found['format']} by {found['method']}, "
          f"{found['tokens']:,} calibration tokens, {found['seconds']:.0f} s")  # fmt: skip
    print(f"peak memory  {found['peak_bytes'] / GIB:.2f} GiB (limit {LIMIT_GIB:g}), {found['imports_bytes'] / GIB:.2f} "
          f"of it imports; {found['planned']}")  # fmt: skip
    print(f"growth       {found['growth_bytes_per_layer'] / 2**20:.1f} MiB for each block after the second")
    whole = found["seconds_per_layer"]
    print(f"a layer      {'-' if whole is None else f'{whole:.1f}'} s: "
          + ", ".join(f"{name} {value:.1f}" for name, value in found["parts_seconds_per_layer"].items()))  # fmt: skip
    print(f"peak = imports + k · working(shape) + growth · layers, k = {found['k']:.2f}; with 128 sequences of 512:")
    for name, nbytes in found["extrapolated_bytes"].items():
        print(f"  {name:5s} {nbytes / GIB:.1f} GiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, help="size of the checkpoint; less has fewer blocks of the same width")
    parser.add_argument("--format", default="q4_k_m")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--calibration-sequences", type=int, default=16)
    parser.add_argument("--calibration-length", type=int, default=256)
    parser.add_argument("--calibration-chunk", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="where calibration computes")
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    shape = MEASURED
    if options.gib is not None:
        ends = 2 * shape.vocabulary * shape.hidden
        shape = replace(shape, layers=max(1, round((options.gib * GIB / 2 - ends) / shape.block)))
    with tempfile.TemporaryDirectory(prefix="tersor-bounded-", dir=options.folder) as name:
        folder = Path(name) / "model"
        folder.mkdir()
        nbytes = make_checkpoint(folder, shape)
        print(f"wrote {size(nbytes)} of bf16 weights in {shape.layers} blocks", file=sys.stderr, flush=True)
        idle = imports_peak()
        watched, card = run(folder, Path(name) / "m.gguf", options)
    found = figures(shape, watched, card, idle, options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
