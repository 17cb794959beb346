"""Encoding and decoding every GGUF format beside llama.cpp's own code: speed, identical bytes, error.

    python benchmarks/gguf_codecs.py [--json] [--formats q4_k,q6_k] [--repeats 5] [--ggml LIBRARY]

ggml is the library inside the PyPI package `llama-cpp-python`, built from its source into an environment of its own
(`.venv-peers`, made on the first run, a few minutes) and called through ctypes in this process, so that both sides
run on the same core in the same seconds: A B A B …, medians of the ratios. One thread, except for the last table.
Weights: the linear layers of the embedded reference model, real and trained.

Each row of "rows" compares like with like. ggml has two encoders per format: a quick one without importance, and a
searching one that takes importance. K-quants search in both. The legacy types only round in the first, so `best`
(which always searches) is set beside their searching encoder, given equal importance for all columns: the column
`importance` says which it was.
"""

from __future__ import annotations

import argparse
import ctypes
import glob
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import gguf
import numpy as np
from rich.console import Console
from rich.table import Table

from tersor import reference_model
from tersor.core.arrays import Bytes, Float32
from tersor.formats import FORMATS
from tersor.kernels import codec
from tersor.models.load import load

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers"
PACKAGE = "llama-cpp-python==0.3.36"  # the version the documented figures are from
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1")
OTHERS = ("q8_0", "iq4_nl", "iq4_xs", "mxfp4", "tq1_0", "tq2_0", "f16", "bf16")
PLAIN = ("f16", "bf16")  # nothing to search for


@dataclass(frozen=True)
class Row:
    """One encoder of ours beside one of ggml's.

    speed_ratio  ggml's time / ours, one thread
    identical    share of blocks with the same bytes
    error_ratio  our root mean square error / ggml's
    """

    format: str
    search: str
    importance: str
    speed_ratio: float
    identical: float
    error_ratio: float
    ggml_mweights_per_s: float
    mweights_per_s: float


@dataclass(frozen=True)
class DecodeRow:
    """Our decoder beside gguf-py's: its time / ours, one thread."""

    format: str
    speed_ratio: float
    identical: bool
    mweights_per_s: float


@dataclass(frozen=True)
class ThreadRow:
    """One thread's time / two threads' time, encoding with `best`."""

    format: str
    scaling: float


class Ggml:
    """The C library."""

    def __init__(self, library: Path) -> None:
        self._chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
            ctypes.c_void_p,
        ]

    def encode(self, name: str, x: Float32, importance: Float32 | None) -> Bytes:
        """Return the blocks of `x` [rows, columns] in fresh memory, as ours does."""
        out = np.empty((len(x), FORMATS[name].row_bytes(x.shape[1])), np.uint8)
        pointer = None if importance is None else importance.ctypes.data
        self._chunk(FORMATS[name].ggml_type, x.ctypes.data, out.ctypes.data, 0, *x.shape, pointer)
        return out


def find_ggml() -> Path:
    """Return ggml's library from the peers' environment, which is made if it is not there."""
    pattern = str(PEERS / "lib" / "python*" / "site-packages" / "llama_cpp" / "lib" / "libggml-base.so")
    if not glob.glob(pattern):  # noqa: PTH207 (a pattern over several folders)
        print(f"building {PACKAGE} from source into {PEERS.name} (once, some minutes) …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        subprocess.run([str(PEERS / "bin" / "pip"), "install", "--quiet", PACKAGE], check=True, stdout=sys.stderr)
    return Path(glob.glob(pattern)[0])  # noqa: PTH207


def real_weights() -> Float32:
    """Return the linear layers of the reference model as rows of 256 weights, float32."""
    model = load(reference_model.PATH)
    parts = [t.read(0, t.rows) for t in model.tensors if len(t.shape) > 1 and t.columns % 256 == 0]
    return np.concatenate([part.reshape(-1, 256) for part in parts])


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(a: Callable[[], object], b: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Return the median ratio time(a) / time(b) and both medians, from pairs run in turn after one of each."""
    a()
    b()
    pairs = [(seconds(a), seconds(b)) for _ in range(repeats)]
    ratio = statistics.median(x / y for x, y in pairs)
    return ratio, statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs)


def error(name: str, x: Float32, data: Bytes) -> float:
    """Return the root of the summed squared error."""
    difference = codec.decode(name, data, x.shape[1]).astype(np.float64) - x
    return float(np.sqrt(np.square(difference).sum()))


def encoder_row(ggml: Ggml, name: str, search: str, x: Float32, *, importance: Float32 | None, repeats: int) -> Row:
    """Measure one encoder of ours beside ggml's."""
    fmt = FORMATS[name]
    theirs = ggml.encode(name, x, importance)
    ours = codec.encode(name, x, importance, search, 1)
    ratio, their_time, our_time = interleaved(
        lambda: ggml.encode(name, x, importance), lambda: codec.encode(name, x, importance, search, 1), repeats
    )
    missed = error(name, x, theirs)  # 0 where the format holds the weights as they are
    blocks = (ours == theirs).reshape(-1, fmt.block_bytes).all(axis=1)
    return Row(
        name,
        search,
        "none" if importance is None else "equal",
        round(ratio, 2),
        round(float(blocks.mean()), 6),
        round(1.0 if missed == 0 else error(name, x, ours) / missed, 4),
        round(x.size / their_time / 1e6, 1),
        round(x.size / our_time / 1e6, 1),
    )


def encoder_rows(ggml: Ggml, names: list[str], x: Float32, repeats: int) -> list[Row]:
    """Measure all encoders: `ggml` with and without importance, `best` against the searching encoder of ggml."""
    equal = np.ones(x.shape[1], np.float32)
    rows = []
    for name in names:
        cases: list[tuple[str, Float32 | None]] = [("ggml", None)]
        if FORMATS[name].uses_importance:
            cases.append(("ggml", equal))
        if name not in PLAIN:
            cases.append(("best", equal if name in LEGACY else None))
        if name in K_QUANTS:
            cases.append(("best", equal))
        rows += [
            encoder_row(ggml, name, search, x, importance=importance, repeats=repeats) for search, importance in cases
        ]
    return rows


def decoder_rows(names: list[str], x: Float32, repeats: int) -> list[DecodeRow]:
    """Measure our decoders beside those of the `gguf` package."""
    rows = []
    for name in names:
        data = codec.encode(name, x, None, "ggml", 0)
        kind = gguf.GGMLQuantizationType(FORMATS[name].ggml_type)
        ratio, _, ours = interleaved(
            lambda data=data, kind=kind: gguf.dequantize(data, kind),  # type: ignore[misc]
            lambda data=data, name=name: codec.decode(name, data, x.shape[1], 1),  # type: ignore[misc]
            repeats,
        )
        same = np.array_equal(gguf.dequantize(data, kind), codec.decode(name, data, x.shape[1], 1))
        rows.append(DecodeRow(name, round(ratio, 2), same, round(x.size / ours / 1e6, 1)))
    return rows


def thread_rows(names: list[str], x: Float32, repeats: int) -> list[ThreadRow]:
    """Measure how two threads scale."""
    rows = []
    for name in names:
        ratio, _, _ = interleaved(
            lambda name=name: codec.encode(name, x, None, "best", 1),  # type: ignore[misc]
            lambda name=name: codec.encode(name, x, None, "best", 2),  # type: ignore[misc]
            repeats,
        )
        rows.append(ThreadRow(name, round(ratio, 2)))
    return rows


def show(rows: list[Row], decoders: list[DecodeRow], threads: list[ThreadRow], where: str) -> None:
    """Print the tables."""
    console = Console(width=110)
    table = Table(title=f"Encoding beside ggml, one thread ({where})", title_justify="left")
    for heading in ("format", "search", "importance", "speed ×", "identical", "error ×", "ggml Mw/s", "ours Mw/s"):
        table.add_column(heading, justify="left" if heading in {"format", "search", "importance"} else "right")
    for r in rows:
        speeds = (f"{r.ggml_mweights_per_s:.1f}", f"{r.mweights_per_s:.1f}")
        table.add_row(
            *(r.format, r.search, r.importance, f"{r.speed_ratio:.2f}", f"{r.identical:.1%}", f"{r.error_ratio:.4f}"),
            *speeds,
        )
    console.print(table)
    table = Table(title="Decoding beside gguf-py, one thread; two threads against one", title_justify="left")
    for heading in ("format", "speed ×", "identical", "ours Mw/s", "two threads ×"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    scaling = {row.format: f"{row.scaling:.2f}" for row in threads}
    for d in decoders:
        same = "yes" if d.identical else "NO"
        table.add_row(d.format, f"{d.speed_ratio:.2f}", same, f"{d.mweights_per_s:.0f}", scaling.get(d.format, ""))
    console.print(table)
    exact = [r.identical for r in rows if r.search == "ggml"]
    console.print(f"search ggml: {100 * min(exact):.4f} % of blocks byte-identical in the worst of {len(exact)} rows")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--formats", default=",".join(K_QUANTS + LEGACY + OTHERS), help="comma-separated names")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved pairs; the median counts")
    parser.add_argument("--ggml", type=Path, help="libggml-base.so to measure against, instead of .venv-peers")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = options.formats.split(",")
    ggml = Ggml(options.ggml or find_ggml())
    x = real_weights()
    large = np.concatenate([x] * 4)  # enough work for the threads' start not to count
    rows = encoder_rows(ggml, names, x, options.repeats)
    decoders = decoder_rows(names, x, options.repeats)
    threads = thread_rows([name for name in names if name in K_QUANTS], large, options.repeats)
    where = f"{codec.backend()}, {platform.machine()}, {datetime.now(UTC):%Y-%m-%d}"
    if options.json:
        document = {
            "where": where,
            "weights": int(x.size),
            "repeats": options.repeats,
            "rows": [asdict(row) for row in rows],
            "decode": [asdict(row) for row in decoders],
            "threads": [asdict(row) for row in threads],
        }
        print(json.dumps(document, indent=2))
    else:
        show(rows, decoders, threads, where)


if __name__ == "__main__":
    main()
