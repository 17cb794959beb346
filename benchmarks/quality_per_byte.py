"""What each method costs at the same bytes: divergence of our files and of llama.cpp's from the unrounded model.

    python benchmarks/quality_per_byte.py [--models FOLDER …] [--formats q4_k_m,…] [--ours rtn,…] [--json]

Every cell is a GGUF that was written, read back and run through tersor's own float32 forward pass over text that no
calibration has seen, all files of a model on the same windows. Tensors of one file type have the same bytes.

llama.cpp none, imatrix   `--search ggml` without and with importance: the tests prove it byte-identical to
                          llama-quantize. As llama-imatrix does, only matrices inside the blocks have importance.
ours rtn, imatrix         our own search, without and with importance
ours gptq, awq, best      calibrated methods; one that this release does not know is left out
ours saved gptq           on sums that `tersor calibrate` saved once, not on text (--ours "gptq,saved gptq")

The embedded reference model is calibrated on Python's standard library without the files of its held-out text; a
folder given with --models needs calibration.txt and eval.txt, or takes them from --text FOLDER.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tersor import reference_model
from tersor.calibrate.encoders import open_encoder
from tersor.calibrate.sequences import pack
from tersor.calibrate.text import read_corpus
from tersor.containers.imatrix import read_imatrix
from tersor.core.errors import SchemeError, TersorError
from tersor.decoder import Block, Decoder
from tersor.decoder.head import Head
from tersor.evaluation.statistics import mean_interval
from tersor.kernels.logits import compare_logits
from tersor.models import Model, load
from tersor.pipeline import quantize as pipeline
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.statistics import calibrate
from tersor.pipeline.steps.planning import Choices, Importance

FORMATS = ("q4_k_m", "q3_k_m", "q2_k", "q4_0")
OURS = ("rtn", "imatrix", "gptq", "awq", "best")
THEIRS = ("llama.cpp none", "llama.cpp imatrix")
RIVAL, BEST = "llama.cpp imatrix", "ours best"
BATCH = 8
DOCUMENT = 8192
"""Characters taken of each file of the standard library: many files rather than few long ones."""


@dataclass(frozen=True)
class Row:
    """One file: bytes of its tensors, mean divergence in nats with a 95 % interval over windows, equal top tokens.

    ratio  of the divergence to llama.cpp's with importance; None where that was not measured
    """

    model: str
    format: str
    method: str
    nbytes: int
    kl: float
    kl_low: float
    kl_high: float
    same_top: float
    quantize_s: float
    ratio: float | None = None


@dataclass(frozen=True)
class Subject:
    """A model held whole, to be run on many windows."""

    blocks: tuple[Block, ...]
    head: Head
    decoder: Decoder

    @classmethod
    def open(cls, model: Model) -> Subject:
        """Read all weights: these models are small."""
        decoder = Decoder(model)
        return cls(tuple(decoder.block(layer) for layer in range(decoder.layers)), decoder.head(), decoder)

    def logits(self, ids: torch.Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Predictions of ids [batch, tokens] but for the last one's of each: [batch · (tokens - 1), vocabulary]."""
        hidden = self.decoder.embed(ids)
        for block in self.blocks:
            hidden = block.forward(hidden)
        made = self.head.forward(hidden[:, :-1]).flatten(0, 1)
        return np.ascontiguousarray(made.numpy())


@dataclass(frozen=True)
class Bench:
    """One model with its texts."""

    folder: Path
    model: Model
    windows: torch.Tensor
    calibration: Calibration
    importance: Importance

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.model.name


@contextmanager
def opened(folder: Path, text: Path, *, tokens: int, sequences: int, length: int, place: Path) -> Iterator[Bench]:
    """Yield a model with its held-out windows and what calibration sees."""
    model = load(str(folder))
    calibration = Calibration(source=calibration_text(text, place), sequences=sequences, length=length, seed=1)
    held_out = next(path for name in ("held_out.txt", "eval.txt") if (path := text / name).is_file())
    with open_encoder(model) as encoder:
        windows = pack(read_corpus(held_out), encoder, count=-(-tokens // length), length=length).ids
    found = place / f"{folder.name}.imatrix.gguf"
    how = How(method="rtn", calibration=calibration, proof=False, save_imatrix=found)
    quantize_calibrated(model, "q8_0", place / f"{folder.name}.gguf", how)
    yield Bench(folder, model, torch.from_numpy(windows), calibration, read_imatrix(found).values())


def calibration_text(text: Path, place: Path, document: int = DOCUMENT) -> Path:
    """Return the file to calibrate on; for the reference model it is made of the standard library."""
    if (text / "calibration.txt").is_file():
        return text / "calibration.txt"
    library = Path(sysconfig.get_paths()["stdlib"])
    unread = set(re.findall(r"`([\w/]+\.py)`", (text / "README.md").read_text(encoding="utf-8")))
    held_out = (text / "held_out.txt").read_text(encoding="utf-8")
    out = place / "standard-library.jsonl"
    with out.open("w", encoding="utf-8") as file:
        paths = [p for p in sorted(library.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(p.parts)]
        random.Random(7).shuffle(paths)
        for path in paths:
            content = path.read_text(encoding="utf-8", errors="ignore")
            known = str(path.relative_to(library)) in unread or content[:400] in held_out
            if len(content) > 500 and not known:
                file.write(json.dumps({"text": content[:document]}) + "\n")
    return out


def write(bench: Bench, file_type: str, method: str, output: Path) -> tuple[int, float]:
    """Write one file; return the bytes of its tensors and the CPU seconds that it took."""
    began = time.process_time()
    inside = {name: values for name, values in bench.importance.items() if name.startswith("blk.")}
    plain: dict[str, Choices] = {
        "llama.cpp none": {"search": "ggml"},
        "llama.cpp imatrix": {"search": "ggml", "importance": inside},
        "ours rtn": {},
        "ours imatrix": {"importance": bench.importance},
    }
    if method in plain:
        card = pipeline.quantize(bench.model, file_type, output, **plain[method])
    else:
        word, folder = method.removeprefix("ours "), output.parents[1] / "saved"
        is_saved = word.startswith("saved ")
        if is_saved and not folder.exists():
            calibrate(bench.model, folder, bench.calibration)
            print(f"sums saved in {time.process_time() - began:.1f} CPU s", file=sys.stderr)
            began = time.process_time()
        how = How(method=word.removeprefix("saved "), calibration=bench.calibration, proof=False)
        how = replace(how, statistics=folder, calibration=None) if is_saved else how
        made = quantize_calibrated(bench.model, file_type, output, how)
        assert made is not None, "a lone process is the first"
        card = made
    return sum(tensor.nbytes for tensor in card.plan.tensors), time.process_time() - began


def measured(bench: Bench, files: dict[str, Path]) -> dict[str, tuple[list[float], float]]:
    """Return for each file the mean divergence of every window, and the share of equal likeliest tokens."""
    reference = Subject.open(bench.model)
    subjects = {name: Subject.open(load(str(path))) for name, path in files.items()}
    divergence: dict[str, list[float]] = {name: [] for name in files}
    same: dict[str, list[float]] = {name: [] for name in files}
    for ids in (bench.windows[at : at + BATCH] for at in range(0, len(bench.windows), BATCH)):
        wanted, targets = reference.logits(ids), ids[:, 1:].reshape(-1).numpy().astype(np.int32)
        for name, subject in subjects.items():
            found = compare_logits(wanted, subject.logits(ids), targets, threads=1)
            divergence[name] += found.divergence.reshape(len(ids), -1).mean(axis=1).tolist()
            same[name].append(float(found.same_top.mean()) * len(ids) / len(bench.windows))
    return {name: (divergence[name], sum(same[name])) for name in files}


def rows(bench: Bench, file_type: str, methods: Sequence[str], place: Path) -> list[Row]:
    """Write and measure all files of one type."""
    files, costs = {}, {}
    for method in methods:
        path = place / f"{file_type}-{method.replace(' ', '-')}" / "model.gguf"
        path.parent.mkdir()
        try:
            costs[method] = write(bench, file_type, method, path)
        except SchemeError as error:
            if "unknown method" not in str(error):
                raise
            print(f"{method}: left out, this release does not know it", file=sys.stderr)
            continue
        files[method] = path
    found = []
    for method, (divergences, same) in measured(bench, files).items():
        kl = mean_interval(np.array(divergences))
        nbytes, seconds = costs[method]
        found.append(Row(bench.name, file_type, method, nbytes, kl.value, kl.low, kl.high, same, round(seconds, 2)))
    rival = next((row.kl for row in found if row.method == RIVAL), None)
    return [replace(row, ratio=row.kl / rival if rival else None) for row in found]


def show(found: list[Row], settings: str) -> None:
    """Print one table a model."""
    console = Console(width=110)
    for name in dict.fromkeys(row.model for row in found):
        table = Table(title=f"{name}: {settings}", title_justify="left")
        for heading in ("file type", "method", "bytes", "mean KL, nats", "95 %", "top-1", "/ imatrix", "CPU s"):
            table.add_column(heading, justify="left" if heading in {"file type", "method"} else "right")
        for row in (row for row in found if row.model == name):
            interval = f"{row.kl_low:.3g} to {row.kl_high:.3g}"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            figures = (f"{row.kl:.4g}", interval, f"{row.same_top:.3f}", ratio, f"{row.quantize_s:.1f}")
            table.add_row(
                row.format, row.method, f"{row.nbytes:,}", *figures, end_section=row.method == found[-1].method
            )
        console.print(table)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="folders beside the reference model")
    parser.add_argument("--text", type=Path, help="where calibration.txt and eval.txt lie, for folders without")
    parser.add_argument("--no-reference", action="store_true", help="leave the embedded model out")
    parser.add_argument("--formats", default=",".join(FORMATS), help="file types, comma-separated")
    parser.add_argument("--ours", default=",".join(OURS), help="our methods, comma-separated")
    parser.add_argument("--tokens", type=int, default=24_576, help="held-out tokens")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence and of a window")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    chosen = options()
    folders = [*([] if chosen.no_reference else [reference_model.PATH]), *chosen.models]
    methods = [*THEIRS, *(f"ours {name}" for name in chosen.ours.split(","))]
    found: list[Row] = []
    torch.set_num_threads(1)  # seconds of one thread
    for folder in folders:
        own = any((folder / name).is_file() for name in ("calibration.txt", "held_out.txt"))
        text = folder if own or chosen.text is None else chosen.text
        with tempfile.TemporaryDirectory() as made:
            place = Path(made)
            sizes = {"tokens": chosen.tokens, "sequences": chosen.sequences, "length": chosen.length}
            with torch.no_grad(), opened(folder, text, place=place, **sizes) as bench:
                for file_type in chosen.formats.split(","):
                    found += rows(bench, file_type, methods, place)
                    print(f"{bench.name} {file_type} done", file=sys.stderr)
    settings = f"calibration {chosen.sequences} × {chosen.length} tokens, held-out {chosen.tokens} tokens"
    if chosen.json:
        print(json.dumps({"settings": settings, "rows": [asdict(row) for row in found]}, indent=2))
    else:
        show(found, settings)


if __name__ == "__main__":
    try:
        main()
    except TersorError as error:
        raise SystemExit(f"quality_per_byte: {error}") from error
