"""Integer linear layers beside the memory's roof and beside every engine that has such a kernel on this processor.

    python benchmarks/linear_roofline.py [--threads 2] [--rounds 15] [--shapes 4096x4096 4096x11008] [--tokens 1 32]
                                         [--beside avx512vnni] [--svg linear_roofline.svg] [--json]

A shape is rows x columns: outputs times inputs. Engines run one after the other, round after round, in this process:
torch, torchao (installed into `.venv-peers` on the first run), ONNX Runtime, and ggml out of the wheel of xllamacpp.
Each multiplies copies of the matrix that fill four times the last-level cache, or one and a half times where that is
a server's of hundreds of megabytes, so weights come from memory. Times are medians; `ours/it` is the median over the
rounds of our time by the engine's: below 1, ours is faster. With one thread only the time that it ran is counted, so
that others who use the machine disturb little.
`roof` is the share of the read bandwidth, measured in the same round, that reading the engine's own weights takes; a
quarter of them may still lie in the cache, so it may pass 100 %.
`dB` is the power of the exact product by that of the error: what rounding weights and activations costs.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks" / "peers"))

import linear_engines as engines  # noqa: E402 (found by the line above)
from linear_engines import Entry, Problem  # noqa: E402

from tersor.kernels import codec  # noqa: E402
from tersor.pipeline.steps.provenance import machine  # noqa: E402
from tersor.targets.processor import busy_cores, processor  # noqa: E402
from tersor.targets.roofs import measure_roofs  # noqa: E402

PEERS = ROOT / ".venv-peers" / "torchao"
SEED = 1
MUCH, MORE = 512 << 20, 1.5
"""Bytes of copies that are enough for any cache, and how many times the cache they are at least."""
PAUSE_S = 0.02
"""Between engines, so that the threads of one have stopped waiting for work before the next is timed."""


@dataclass(frozen=True)
class Row:
    """What was seen of one engine on one layer."""

    shape: str
    tokens: int
    bits: int
    engine: str
    microseconds: float
    gigabytes_per_s: float
    roof_share: float
    gigaops: float
    ours_by_it: float
    decibels: float

    def shown(self) -> str:
        """The row as text."""
        return (
            f"{self.engine:40} {self.microseconds:9.0f} {self.gigabytes_per_s:7.1f} {100 * self.roof_share:6.0f} % "
            f"{self.gigaops:7.0f} {self.ours_by_it:8.2f} {self.decibels:7.1f}"
        )


HEADING = f"{'engine':40} {'µs':>9} {'GB/s':>7} {'roof':>8} {'GOP/s':>7} {'ours/it':>8} {'dB':>7}"


def makers(bits: int, torchao: bool, beside: str) -> Iterator[Callable[[Problem], Entry]]:
    """Yield what makes each engine's entry, ours first."""
    if bits == 4:
        yield from (partial(engines.ours, spelled="int4-g128-sym-f16", digits=digits) for digits in (1, 2))
        if beside:
            yield partial(engines.ours, spelled="int4-g128-sym-f16", digits=1, isa=beside)
        yield partial(engines.ours, spelled="int4-g32-sym-f16", digits=1)
        yield engines.torch_int4pack
        yield from (partial(engines.ort_int4, accuracy=level) for level in (4, 0))
        yield from (partial(engines.ggml, name=name) for name in ("q4_0", "q4_k"))
    else:
        yield from (partial(engines.ours, spelled="int8-channel-sym-f16", digits=digits) for digits in (1, 2))
        if beside:
            yield partial(engines.ours, spelled="int8-channel-sym-f16", digits=1, isa=beside)
        yield engines.torch_int8pack
        yield from (partial(engines.torch_dynamic, engine=name) for name in ("onednn", "fbgemm"))
        if torchao:
            yield partial(engines.torchao_int8, folder=PEERS)
        yield engines.ort_int8
        yield partial(engines.ggml, name="q8_0")
    yield partial(engines.torch_float, dtype=torch.bfloat16)


def install_torchao() -> bool:
    """Install the peer where it disturbs nothing; tell whether it is there."""
    if not (PEERS / "torchao").is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(PEERS),
            engines.TORCHAO,
        ]
        if subprocess.run(command, check=False).returncode:
            print("torchao cannot be installed: left out", file=sys.stderr)
            return False
    return True


def measured(shape: str, tokens: int, bits: int, options: argparse.Namespace, torchao: bool) -> list[Row]:
    """Time every engine on one layer."""
    rows, columns = map(int, shape.split("x"))
    random = np.random.default_rng(SEED)
    weight = random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
    x = random.standard_normal((tokens, columns), np.float32)
    cache = processor().cache_bytes or 32 << 20
    filled = min(4 * cache, max(MUCH, MORE * cache))
    problem = Problem(weight, x, max(2, math.ceil(filled / (rows * columns * bits / 8))), options.threads)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    entries = [make(problem) for make in makers(bits, torchao, options.beside)]
    noise = [np.square(entry.result() - exact).sum() for entry in entries]
    decibels = [10 * math.log10(np.square(exact).sum() / power) for power in noise]
    clock = time.perf_counter if options.threads > 1 else time.thread_time
    seconds: list[list[float]] = [[] for _ in entries]
    roofs = []
    for number in range(options.rounds):
        roofs.append(measure_roofs(options.threads).read_bytes_per_s)
        for place in range(len(entries)):  # none is always the one after the roofs, when others claim the machine
            turn = (place + number) % len(entries)
            entry, times = entries[turn], seconds[turn]
            time.sleep(PAUSE_S)
            entry.run()  # wakes the threads, and puts the engine's code and scales where they would be
            began = clock()
            entry.run()
            times.append((clock() - began) / problem.copies)
    found = []
    for entry, times, level in zip(entries, seconds, decibels, strict=True):
        typical = median(times)
        rate, work = entry.nbytes / typical, 2 * tokens * rows * columns / typical
        share = median(entry.nbytes / its / roof for its, roof in zip(times, roofs, strict=True))
        ratio = median(own / its for own, its in zip(seconds[0], times, strict=True))
        found.append(Row(shape, tokens, bits, entry.name, 1e6 * typical, rate / 1e9, share, work / 1e9, ratio, level))
    return found


def picture(rows: list[Row], title: str) -> str:
    """The rows of few tokens as bars of GB/s, those of many as bars of GOP/s: a page of SVG."""
    cases = list(dict.fromkeys((row.shape, row.tokens, row.bits) for row in rows))
    height, width, left, line = 60, 900, 330, 18
    body = []
    for case in cases:
        few = case[1] == min(row.tokens for row in rows)
        bars = [row for row in rows if (row.shape, row.tokens, row.bits) == case]
        body.append(f'<text x="10" y="{height}" font-weight="bold">{case[0]}, int{case[2]}, {case[1]} token(s)</text>')
        most = max((row.gigabytes_per_s / row.roof_share if few else row.gigaops) for row in bars)
        for row in bars:
            height += line
            value = row.gigabytes_per_s if few else row.gigaops
            length = value / most * (width - left - 120)
            text = f"{value:.1f} GB/s, {100 * row.roof_share:.0f} %" if few else f"{value:.0f} GOP/s"
            colour = "#1f6f8b" if row.engine.startswith("tersor") else "#b9c4c9"
            body.append(f'<text x="{left - 8}" y="{height}" text-anchor="end">{row.engine}</text>')
            body.append(f'<rect x="{left}" y="{height - 11}" width="{length:.1f}" height="13" fill="{colour}"/>')
            body.append(f'<text x="{left + length + 6:.1f}" y="{height}">{text}</text>')
        height += 2 * line
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
    parts = [
        head + 'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="24">{title}</text>',
    ]
    return "\n".join([*parts, *body, "</svg>", ""])


def main() -> None:
    """Measure and print, each table when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="*", default=["4096x4096", "4096x11008"])
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--bits", nargs="*", type=int, default=[4, 8])
    parser.add_argument("--beside", default="", help="another instruction set to compute ours by, as avx512vnni")
    parser.add_argument("--svg", type=Path, help="write a picture")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of the tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torchao, roofs = install_torchao(), measure_roofs(options.threads)
    about = {
        "machine": machine(), "threads": options.threads, "kernels": codec.backend(), "torch": torch.__version__,
        "read GB/s": round(roofs.read_bytes_per_s / 1e9, 1), "int8 GOP/s": round((roofs.int8_ops or 0) / 1e9),
        "load": busy_cores(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows: list[Row] = []
    for shape in options.shapes:
        for tokens in options.tokens:
            for bits in options.bits:
                found = measured(shape, tokens, bits, options, torchao)
                rows += found
                gc.collect()
                if not options.json:
                    print(f"\n{shape}, int{bits}, {tokens} token(s)\n{HEADING}")
                    print("\n".join(row.shown() for row in found), flush=True)
    if options.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1))
    if options.svg:
        options.svg.write_text(picture(rows, f"{about['machine']}, {options.threads} threads, {about['date']}"))


if __name__ == "__main__":
    main()
