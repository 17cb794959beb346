"""What training on the grid is worth: divergence of rtn, gptq, best and qat from the unrounded model at the same bytes.

    python benchmarks/qat_language.py [--formats q2_k,q3_k_m,int3-g64,2.6] [--seeds 0,1] [--sequences 512] [--epochs 4]
                                       [--block-epochs 2] [--document 10000000] [--train-sequences 9000]
                                       [--packages 0] [--rates 2e-3 1e-3 2e-3]

The subject is the embedded reference model. A format that is a number is a plan of so many bits per weight, as
`tersor plan` makes it from the calibration text: a GGUF file whose layers have the formats that suit them best.
All methods see the same calibration text, the standard library without
the files of the held-out text; with `--train-sequences` training alone reads that library whole, and `--packages` times
as much of the packages that are installed, but for copies of a held-out file. What is measured is that held-out text,
read by no method, through tersor's own float32 forward pass on the written file. Every GGUF goes through llama.cpp too:
as it is, where activations are rounded to 8 bits, and with its weights written out as float32, where logits must be
equal but for the order of sums.
A seed shuffles the documents and the order of training.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from quality_per_byte import BATCH, DOCUMENT, Subject, calibration_text
from tersor import reference_model
from tersor.calibrate.encoders import open_encoder
from tersor.calibrate.sequences import pack
from tersor.calibrate.text import read_corpus
from tersor.core.errors import TersorError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.checks.logits import compare
from tersor.evaluation.statistics import mean_interval, ratio_interval
from tersor.kernels.logits import compare_logits
from tersor.models import Model, load
from tersor.pipeline import quantize as plainly
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.training.settings import Training
from tersor.pipeline.planning.analysing import Study, analyse
from tersor.pipeline.planning.goals import PlanGoal
from tersor.pipeline.planning.planning import Planner
from tersor.pipeline.planning.targets import TARGETS

METHODS = ("rtn", "gptq", "best", "qat")
LLAMA = 2
"""Windows that go through llama.cpp."""
COPIED, FILE = 3, 40_000
"""Long lines of held-out text that make a file a copy of some of it; characters taken of a file of a package."""


@dataclass(frozen=True)
class Row:
    """One file: bytes of its tensors, mean divergence in nats with a 95 % interval over windows, CPU seconds.

    of_best   its divergence as a share of that of best, with an interval over the same windows
    llama     largest difference of a logit between llama.cpp and tersor, of the file as it is and of its weights in
              float32, in units of their root mean square; None where it is no GGUF
    """

    format: str
    seed: int
    method: str
    nbytes: int
    kl: tuple[float, float, float]
    same_top: float
    seconds: float
    of_best: tuple[float, float, float] | None = None
    llama: tuple[float, float] | None = None


def written(model: Model, name: str, how: How, place: Path) -> tuple[Path, int, float, list[str]]:
    """Write one file; return its path, the bytes of its tensors, CPU seconds, and what the Card notes of training."""
    is_group = name.startswith("int")
    formats: tuple[str, ...] = ()
    output = place / (f"{name}-{how.method}" + ("" if is_group else ".gguf"))
    if name[0].isdigit():
        assert isinstance(how.calibration, Calibration), "text, as it is given above"
        study = Study(TARGETS["cpu"].formats, calibration=how.calibration, threads=1)
        planner = Planner(model, analyse(model, place / "analysis", study))  # made once, then taken from there
        plan = planner.plan(PlanGoal(bits_per_weight=float(name))).file
        name, formats = plan.file_type, plan.tensor_formats(model)
    began = time.process_time()
    how = replace(how, container="gptq" if is_group else "gguf")
    card = quantize_calibrated(model, name, output, how, tensor_formats=formats)
    assert card is not None, "a lone process is the first"
    nbytes = sum(tensor.nbytes for tensor in card.plan.tensors)
    notes = [note for note in card.notes if note.startswith("qat")]
    return output, nbytes, time.process_time() - began, notes


def training_text(place: Path, of_packages: float) -> Path:
    """Write the whole standard library, without what is held out, and so many times as much of installed packages."""
    folder = place / "training"
    folder.mkdir(exist_ok=True)
    text = calibration_text(reference_model.PATH, folder, document=sys.maxsize)
    held_out = long_lines((reference_model.PATH / "held_out.txt").read_text(encoding="utf-8"))
    packages = Path(sysconfig.get_paths()["purelib"])
    paths = [p for p in sorted(packages.rglob("*.py")) if not {"test", "tests"} & set(p.relative_to(packages).parts)]
    random.Random(7).shuffle(paths)
    with text.open("a", encoding="utf-8") as file:
        wanted = (1 + of_packages) * file.tell()
        for path in paths:
            if file.tell() >= wanted:
                break
            content = path.read_text(encoding="utf-8", errors="ignore")
            if len(content) > 500 and len(long_lines(content) & held_out) < COPIED:
                file.write(json.dumps({"text": content[:FILE]}) + "\n")
    return text


def long_lines(text: str) -> set[str]:
    """Lines that say where a file comes from."""
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= 40}


def told() -> Callable[[str, int, int], None]:
    """Return what prints how far training is, every few minutes."""
    last = [time.monotonic()]

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 120:
            last[0] = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return tell


def divergences(reference: Subject, path: Path, windows: torch.Tensor) -> tuple[np.ndarray, float]:
    """Return the mean divergence of every window, and the share of equal likeliest tokens."""
    subject, found, same = Subject.open(load(str(path))), [], []
    for ids in torch.split(windows, BATCH):
        targets = ids[:, 1:].reshape(-1).numpy().astype(np.int32)
        compared = compare_logits(reference.logits(ids), subject.logits(ids), targets, threads=1)
        found.append(compared.divergence.reshape(len(ids), -1).mean(axis=1))
        same.append(float(compared.same_top.mean()) * len(ids) / len(windows))
    return np.concatenate(found), sum(same)


def in_llama(path: Path, windows: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference of a logit, of the file as it is and with its weights as float32."""
    subject = Subject.open(load(str(path)))
    plain = path.with_suffix(".f32.gguf")
    plainly.quantize(load(str(path)), "f32", plain)
    found = []
    for file in (path, plain):
        with LlamaCpp(file, context=windows.shape[1], threads=1, timeout_s=600) as engine:

            def ours(ids: object) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
                row = torch.tensor([ids])
                hidden = subject.decoder.embed(row)
                for block in subject.blocks:
                    hidden = block.forward(hidden)
                made: np.ndarray[tuple[int, int], np.dtype[np.float32]] = subject.head.forward(hidden)[0].numpy()
                return made

            found.append(compare(ours, engine.logits, windows[:LLAMA].tolist()).difference)
    plain.unlink()
    return found[0], found[1]


def measured(chosen: argparse.Namespace, name: str, seed: int, place: Path) -> list[Row]:
    """Write and measure all files of one format and seed."""
    model = load(str(reference_model.PATH))
    reference = Subject.open(model)
    with open_encoder(model) as encoder:
        corpus = read_corpus(reference_model.PATH / "held_out.txt")
        windows = torch.from_numpy(pack(corpus, encoder, count=chosen.windows, length=chosen.length).ids)
    text = calibration_text(reference_model.PATH, place, chosen.document)
    calibration = Calibration(source=text, sequences=chosen.sequences, length=chosen.length, seed=seed + 1)
    more = None
    if chosen.train_sequences:
        more = replace(calibration, source=training_text(place, chosen.packages), sequences=chosen.train_sequences)
    rates = dict(zip(("rate", "scale_rate", "norm_rate"), chosen.rates, strict=True))
    training = Training(epochs=chosen.epochs, block_epochs=chosen.block_epochs, seed=seed, **rates)
    rows, every = [], {}
    for method in chosen.methods.split(","):
        how = How(method=method, calibration=calibration, training=training, proof=method == "qat", threads=1)
        how = replace(how, train=more if method == "qat" else None, progress=told())
        path, nbytes, seconds, notes = written(model, name, how, place)
        for note in notes:
            print(note, file=sys.stderr)
        every[method], same = divergences(reference, path, windows)
        kl = mean_interval(every[method])
        share = None
        if "best" in every:
            ratio = ratio_interval(every[method], every["best"])
            share = ratio.value, ratio.low, ratio.high
        llama = in_llama(path, windows) if path.suffix == ".gguf" and method == "qat" else None
        rows.append(Row(name, seed, method, nbytes, (kl.value, kl.low, kl.high), same, seconds, share, llama))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def show(rows: list[Row], settings: str) -> None:
    """Print the table."""
    table = Table(title=settings, title_justify="left")
    for heading in ("format", "seed", "method", "bytes", "mean KL, nats", "95 %", "/ best", "95 %", "top-1", "CPU s"):
        table.add_column(heading, justify="left" if heading in {"format", "method"} else "right")
    for row in rows:
        share = (
            ("", "") if row.of_best is None else (f"{row.of_best[0]:.2f}", "{1:.2f} to {2:.2f}".format(*row.of_best))
        )
        interval = f"{row.kl[1]:.3g} to {row.kl[2]:.3g}"
        figures = (f"{row.nbytes:,}", f"{row.kl[0]:.4g}", interval, *share, f"{row.same_top:.3f}", f"{row.seconds:.0f}")
        table.add_row(row.format, str(row.seed), row.method, *figures, end_section=row.method == "qat")
    console = Console(width=120)
    console.print(table)
    for row in rows:
        if row.llama is not None:
            console.print(
                f"llama.cpp, {row.format} {row.method}, seed {row.seed}: largest difference of a logit "
                f"{row.llama[0]:.2g} of rms as it is, {row.llama[1]:.2g} with the weights as float32"
            )


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", default="q2_k,q3_k_m,int3-g64", help="file types, integer groups, bits per weight")
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--sequences", type=int, default=512, help="of calibration text, for all methods")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence and of a window")
    parser.add_argument("--document", type=int, default=DOCUMENT, help="characters of each file at most")
    parser.add_argument("--train-sequences", type=int, default=0, help="of text that training alone reads")
    parser.add_argument("--packages", type=float, default=2, help="as much text of packages, times the library's")
    parser.add_argument("--windows", type=int, default=64, help="of held-out text")
    parser.add_argument("--epochs", type=int, default=Training().epochs, help="end to end")
    rates = [Training().rate, Training().scale_rate, Training().norm_rate]
    parser.add_argument("--rates", nargs=3, type=float, default=rates, help="of weights, scales and norms")
    parser.add_argument("--block-epochs", type=int, default=Training().block_epochs, help="of each block before")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    chosen = options()
    torch.set_num_threads(1)  # seconds of one thread
    rows: list[Row] = []
    for name in chosen.formats.split(","):
        for seed in map(int, chosen.seeds.split(",")):
            with tempfile.TemporaryDirectory() as place, torch.no_grad():
                rows += measured(chosen, name, seed, Path(place))
    settings = (
        f"{chosen.sequences} × {chosen.length} calibration tokens, {chosen.windows} held-out windows, "
        f"{chosen.block_epochs} + {chosen.epochs} epochs, {chosen.train_sequences} sequences more to train on"
        f"{f', {chosen.packages:g} of packages to 1 of the library' if chosen.train_sequences else ''}, "
        f"rates {' / '.join(f'{rate:g}' for rate in chosen.rates)}"
    )
    if chosen.json:
        print(json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        show(rows, settings)


if __name__ == "__main__":
    try:
        main()
    except TersorError as error:
        raise SystemExit(f"qat_language: {error}") from error
