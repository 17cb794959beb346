"""GPTQ and its kin beside the peers: quality, processor time and memory of whole runs, and time of single layers.

    python benchmarks/peers_gptq.py [--bits 4,3] [--rounds 1] [--only tersor …] [--json]
    python benchmarks/peers_gptq.py --layers [--shapes 4096x4096 …] [--json]

Every run is a child process with one thread that calibrates the embedded reference model on the same token ids and
writes it; ours and the peers' take turns. Seconds and peak memory are above what the imports took. What was written is
read back by tersor and run through its float32 forward pass over text that no calibration has seen. Ours keeps scales
in 16 bits and reads and tokenizes its text; the peers are given ids, and their scales have 32 bits where they hand out
values.

--layers gives one random weight and one Hessian to the function that each uses for a layer. The Hessian is what inputs
have on average that share an eighth as many directions as there are columns, with lognormal strengths.

A peer lives in an environment of its own, named by an option or a variable; without it its rows are skipped:
  --llm-compressor-python, TERSOR_LLM_COMPRESSOR_PYTHON   pip install llmcompressor==0.14.0.1
  --gptqmodel-python, TERSOR_GPTQMODEL_PYTHON             pip install gptqmodel==7.4.0 requests
  --auto-round-python, TERSOR_AUTO_ROUND_PYTHON           pip install auto-round==0.15.1
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import tersor
from quality_per_byte import BATCH, Subject, calibration_text
from tersor import reference_model
from tersor.calibrate.encoders import open_encoder
from tersor.calibrate.sequences import pack
from tersor.calibrate.text import read_corpus
from tersor.core.errors import TersorError
from tersor.evaluation.statistics import Interval, mean_interval, ratio_interval
from tersor.kernels.logits import compare_logits
from tersor.methods import output_error
from tersor.models import Model, load
from tersor.pipeline.calibrated.run import Calibration, read_sequences
from tersor.pipeline.steps.provenance import machine

ENGINE = Path(__file__).parent / "peers" / "gptq_engine.py"
SEED = 1
LIMIT_S = 1800
MIB = 2**20
PIP = {
    "llm-compressor": "llmcompressor==0.14.0.1",
    "GPTQModel": "gptqmodel==7.4.0 requests",
    "auto-round": "auto-round==0.15.1",
}
SHAPES = ("4096x4096", "14336x4096", "4096x14336")


@dataclass(frozen=True)
class Candidate:
    """A row of the tables: who quantizes, and how."""

    name: str
    engine: str
    method: str
    proof: bool = False


CANDIDATES = (
    Candidate("tersor rtn", "tersor", "rtn"),
    Candidate("llm-compressor GPTQ", "llm-compressor", "gptq"),
    Candidate("tersor gptq", "tersor", "gptq"),
    Candidate("GPTQModel GPTQ", "GPTQModel", "gptq"),
    Candidate("tersor best", "tersor", "best"),
    Candidate("auto-round, 200 steps", "auto-round", "autoround"),
    Candidate("tersor qronos", "tersor", "qronos"),
    Candidate("tersor awq", "tersor", "awq"),
    Candidate("llm-compressor AWQ", "llm-compressor", "awq"),
    Candidate("tersor awq+gptq", "tersor", "awq+gptq"),
    Candidate("tersor autoround", "tersor", "autoround"),
    Candidate("tersor gptq, with proof", "tersor", "gptq", proof=True),
    Candidate("tersor best, with proof", "tersor", "best", proof=True),
)
LAYER_CANDIDATES = CANDIDATES[:5]


@dataclass(frozen=True)
class Goal:
    """A figure of ours over the same one of a peer, and what it is to be at most."""

    figure: str
    ours: str
    peer: str
    limit: float


GOALS = (
    Goal("KL", "tersor best", "auto-round, 200 steps", 0.8),
    Goal("KL", "tersor best", "llm-compressor GPTQ", 0.8),
    Goal("CPU s", "tersor best", "llm-compressor GPTQ", 1.0),
    Goal("CPU s", "tersor gptq", "llm-compressor GPTQ", 0.7),
    Goal("CPU s", "tersor awq", "llm-compressor AWQ", 1 / 3),
    Goal("CPU s", "tersor awq+gptq", "llm-compressor AWQ", 1 / 3),
    Goal("peak", "tersor gptq", "llm-compressor GPTQ", 0.5),
    Goal("peak", "tersor gptq", "GPTQModel GPTQ", 0.5),
    Goal("peak", "tersor best", "auto-round, 200 steps", 0.5),
    Goal("peak", "tersor awq", "llm-compressor AWQ", 0.5),
)
LAYER_GOALS = tuple(Goal("CPU s", "tersor gptq", peer, 1 / 3) for peer in ("llm-compressor GPTQ", "GPTQModel GPTQ"))


@dataclass
class Row:
    """What a candidate took and gave; `note` says why there is nothing. Lists have one entry a round.

    group        bits of the model, or the shape of the layer
    divergences  of every window of held-out text, nats
    error        of the layer's outputs, its energy over theirs
    """

    name: str
    group: str
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    kl: Interval | None = None
    same_top: float | None = None
    perplexity: float | None = None
    error: float | None = None
    note: str = ""
    divergences: list[float] = field(default_factory=list, repr=False)

    def figure(self, name: str) -> float | None:
        """Return what a goal speaks of."""
        if name == "KL":
            return None if self.kl is None else self.kl.value
        found = self.cpu_s if name == "CPU s" else self.peak_bytes
        return median(found) if found else None

    def to_object(self) -> dict[str, object]:
        """Return it for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "divergences"}


@dataclass
class Runner:
    """Starts children in the environments there are, and notes the versions that they name."""

    pythons: Mapping[str, Path]
    scratch: Path
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def run(self, candidate: Candidate, job: Mapping[str, object], row: Row) -> bool:
        """Run one job and add what it took to `row`; False, with a note there, where there is no result."""
        python = self.pythons.get(candidate.engine)
        if python is None or not python.exists():
            option = f"--{candidate.engine.lower()}-python V/bin/python"
            row.note = f"skipped: python -m venv V && V/bin/pip install {PIP[candidate.engine]}, then {option}"
            return False
        path = self.scratch / "job.json"
        path.write_text(json.dumps({**job, "method": candidate.method, "proof": candidate.proof}), encoding="utf-8")
        print(f"{row.group}: {candidate.name} …", file=sys.stderr, flush=True)
        command = [str(python), str(ENGINE), candidate.engine, str(path)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
                env=environment(candidate.engine),
                cwd=self.scratch,
            )
        except subprocess.TimeoutExpired:
            row.note = f"no result in {LIMIT_S} s"
            return False
        last = done.stdout.strip().rpartition("\n")[2]
        if done.returncode or not last.startswith('{"cpu_s"'):
            errors = [line.strip() for line in done.stderr.splitlines() if re.search(r"Error\b|Exception\b", line)]
            row.note = (errors or [f"it ended with {done.returncode}"])[-1][:200]
            return False
        found = json.loads(last)
        row.cpu_s.append(round(found["cpu_s"], 2))
        row.wall_s.append(round(found["wall_s"], 2))
        row.peak_bytes.append(found["peak_bytes"])
        self.versions[candidate.engine] = found["versions"]
        return True


def environment(engine: str) -> dict[str, str]:
    """Return the variables of a child: one thread, no network, our source for ours alone."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if engine == "tersor":
        kept["PYTHONPATH"] = str(Path(tersor.__file__).parents[1])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**kept, **threads, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Judge:
    """The unrounded model and the windows on which files are compared with it."""

    reference: Subject
    windows: torch.Tensor

    @classmethod
    def open(cls, model: Model, tokens: int, length: int) -> Judge:
        """Read the model and its held-out text."""
        with open_encoder(model) as encoder:
            corpus = read_corpus(reference_model.PATH / "held_out.txt")
            windows = pack(corpus, encoder, count=-(-tokens // length), length=length).ids
        return cls(Subject.open(model), torch.from_numpy(windows))

    def score(self, folder: Path, row: Row) -> None:
        """Add divergence, equal top tokens and perplexity to `row`."""
        subject = Subject.open(load(str(folder)))
        same, loss = [], []
        for ids in (self.windows[at : at + BATCH] for at in range(0, len(self.windows), BATCH)):
            targets = ids[:, 1:].reshape(-1).numpy().astype(np.int32)
            found = compare_logits(self.reference.logits(ids), subject.logits(ids), targets, threads=1)
            row.divergences += found.divergence.reshape(len(ids), -1).mean(axis=1).tolist()
            same.append(found.same_top)
            loss.append(found.subject_loss)
        row.kl = mean_interval(np.array(row.divergences))
        row.same_top = float(np.concatenate(same).mean())
        row.perplexity = math.exp(float(np.concatenate(loss).mean()))


def whole_runs(runner: Runner, options: argparse.Namespace) -> Iterator[Row]:
    """Yield every candidate at every width, once its last round is over; rounds go through all candidates."""
    model = load(str(reference_model.PATH))
    text = calibration_text(reference_model.PATH, runner.scratch)
    shape = Calibration(source=text, sequences=options.sequences, length=options.length, seed=SEED)
    ids = read_sequences(model, shape).ids.tolist()
    judge = Judge.open(model, options.tokens, options.length)
    for bits in options.bits:
        chosen = [one for one in CANDIDATES if not options.only or one.name.startswith(tuple(options.only))]
        rows = {one.name: Row(one.name, f"int{bits}-g128") for one in chosen}
        for turn in range(options.rounds):
            for index, candidate in enumerate(chosen):
                row, out = rows[candidate.name], runner.scratch / f"{bits}-{turn}-{index}"
                job = {"model": str(reference_model.PATH), "text": str(text), "ids": ids, "bits": bits, "seed": SEED}
                if (not turn or not row.note) and runner.run(candidate, {**job, "out": str(out)}, row) and not turn:
                    judge.score(out, row)
                if turn == options.rounds - 1:
                    yield row


def layers(runner: Runner, options: argparse.Namespace) -> Iterator[Row]:
    """Yield every candidate on every shape; the peers get the same arrays."""
    paths = {name: runner.scratch / f"{name}.npy" for name in ("weight", "hessian", "out")}
    bits = options.bits[0]
    for shape in options.shapes:
        rows, columns = map(int, shape.split("x"))
        random = np.random.default_rng(SEED)
        weight = random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        hessian = make_hessian(columns, random)
        np.save(paths["weight"], weight)
        np.save(paths["hessian"], hessian)
        w, h = torch.from_numpy(weight), torch.from_numpy(hessian)
        energy = output_error(w, torch.zeros_like(w), h)
        found = [Row(one.name, shape) for one in LAYER_CANDIDATES]
        job = {**{name: str(path) for name, path in paths.items()}, "bits": bits}
        for turn in range(options.rounds):
            for candidate, row in zip(LAYER_CANDIDATES, found, strict=True):
                if (not turn or not row.note) and runner.run(candidate, job, row) and not turn:
                    row.error = output_error(w, torch.from_numpy(np.load(paths["out"])), h) / energy
                if turn == options.rounds - 1:
                    yield row


def make_hessian(columns: int, random: np.random.Generator) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the mean of x xᵀ, float32, over inputs that are correlated and of unequal strength."""
    shared = max(columns // 8, 1)
    strength = np.exp(0.7 * random.standard_normal(columns)).astype(np.float32)
    directions = random.standard_normal((columns, shared), np.float32) * (strength[:, None] * np.float32(shared**-0.5))
    hessian = (torch.from_numpy(directions) @ torch.from_numpy(directions).T).numpy()
    hessian[np.diag_indices(columns)] += np.float32(0.1) * strength**2
    return np.asarray(hessian, np.float32)


def judged(rows: Sequence[Row], goals: Sequence[Goal]) -> Iterator[dict[str, object]]:
    """Yield the ratio of every goal that both figures are known of, with its interval where it is one of quality."""
    for group in dict.fromkeys(row.group for row in rows):
        known = {row.name: row for row in rows if row.group == group}
        for goal in goals:
            ours, peer = known.get(goal.ours), known.get(goal.peer)
            above, below = (None if row is None else row.figure(goal.figure) for row in (ours, peer))
            if ours is None or peer is None or above is None or not below:
                continue
            ratio = above / below
            found: dict[str, object] = {"group": group, **asdict(goal), "ratio": ratio, "met": ratio <= goal.limit}
            if goal.figure == "KL":
                interval = ratio_interval(ours.divergences, peer.divergences)
                found |= {"low": interval.low, "high": interval.high}
            yield found


def shown(row: Row) -> str:
    """Return a row as text."""
    if row.note:
        return f"{row.group:11} {row.name:24} {row.note}"
    quality = f"{row.error:9.6f}" if row.error is not None else ""
    if row.kl is not None:
        interval = f"{row.kl.low * 1e3:.3f} to {row.kl.high * 1e3:.3f}"
        quality = f"{row.kl.value * 1e3:9.3f} {interval:>18} {row.same_top:6.4f} {row.perplexity:8.3f}"
    cost = f"{median(row.cpu_s):8.1f} {median(row.wall_s):7.1f} {median(row.peak_bytes) / MIB:9.0f}"
    return f"{row.group:11} {row.name:24} {quality} {cost}"


def heading(options: argparse.Namespace) -> str:
    """Return what the columns are called."""
    quality = f"{'error':>9}" if options.layers else f"{'KL ×1000':>9} {'95 %':>18} {'top-1':>6} {'ppl':>8}"
    return f"{'':11} {'':24} {quality} {'CPU s':>8} {'wall s':>7} {'peak MiB':>9}"


def setting(options: argparse.Namespace) -> str:
    """Return what the rows have in common."""
    if options.layers:
        return f"int{options.bits[0]}-g128, one thread"
    text = f"{options.sequences} x {options.length} calibration tokens, {options.tokens} held-out tokens"
    return f"one thread, {text}; tersor without its proof on held-out text, which no peer does, but where it is named"


def told(goal: Mapping[str, Any]) -> str:
    """Return a judged goal as text."""
    interval = f" ({goal['low']:.2f} to {goal['high']:.2f})" if "low" in goal else ""
    verdict = "met" if goal["met"] else "MISSED"
    names = f"{goal['ours']} / {goal['peer']}"
    ratio = f"{goal['ratio']:.2f}{interval}, goal {goal['limit']:.2f}: {verdict}"
    return f"{goal['group']:11} {goal['figure']:6} {names:42} {ratio}"


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bits",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[4, 3],
        help="of a weight, comma-separated",
    )
    parser.add_argument("--only", nargs="*", default=[], help="words that the name of a row must begin with")
    parser.add_argument("--rounds", type=int, default=1, help="turns that all take; seconds and memory are the medians")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence and of a window")
    parser.add_argument("--tokens", type=int, default=24_576, help="held-out tokens")
    parser.add_argument(
        "--layers", action="store_true", help="single layers instead of whole runs, at the first of --bits"
    )
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="of the layers, rows x columns")
    for name in PIP:
        variable = f"TERSOR_{name.upper().replace('-', '_')}_PYTHON"
        option = f"--{name.lower()}-python"
        parser.add_argument(option, type=Path, default=os.environ.get(variable), dest=name, metavar="PYTHON")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; rows go to stderr")
    return parser.parse_args()


def main() -> None:
    """Measure and print, each row when it is known."""
    options = arguments()
    torch.set_num_threads(1)
    out = sys.stderr if options.json else sys.stdout
    pythons = {name: Path(path).absolute() for name in PIP if (path := getattr(options, name))}  # links stay links
    command = shlex.join(["python", "benchmarks/peers_gptq.py", *(Path(word).name for word in sys.argv[1:])])
    about = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "command": command}
    about["setting"] = setting(options)
    print(f"{about['machine']}, {about['date']}, {command}\n{about['setting']}", file=out)
    print(heading(options), file=out, flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tersor-peers-") as folder, torch.no_grad():
        runner = Runner({"tersor": Path(sys.executable), **pythons}, Path(folder))
        for row in (layers if options.layers else whole_runs)(runner, options):
            rows.append(row)
            print(shown(row), file=out, flush=True)
    goals = list(judged(rows, LAYER_GOALS if options.layers else GOALS))
    versions = {**runner.versions, "tersor": {"tersor": tersor.__version__, **runner.versions.get("tersor", {})}}
    for name, found in versions.items():
        print(f"{name}: {', '.join(f'{package} {version}' for package, version in found.items())}", file=out)
    print("\n".join(map(told, goals)), file=out)
    if options.json:
        document = {**about, "versions": versions, "rows": [row.to_object() for row in rows], "goals": goals}
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    try:
        main()
    except TersorError as error:
        raise SystemExit(f"peers_gptq: {error}") from error
