"""What a plan is worth at the bytes of llama.cpp's mixtures, whether its predictions hold, and what planning costs.

    python benchmarks/plan_quality.py [--model FOLDER [--text FOLDER]] [--formats q4_k_m,…] [--no-scaling] [--json]

Every cell is a GGUF that was written, read back and run through tersor's own float32 forward pass over text that no
calibration and no analysis has seen, all files on the same windows.

llama.cpp imatrix  `--search ggml` with importance: the tests prove it byte-identical to llama-quantize
ours best          our own best method on llama.cpp's mixture
plan               `tersor plan` at no more than the mixture's bytes, rounded by the same method

Then plans of other sizes: predicted divergence against that of the file. At last what planning costs on Llamas of three
sizes with random weights: CPU seconds of the whole analysis over 11 formats, and of the plan made from it.

The subject is the embedded reference model, or a folder with calibration.txt and eval.txt in it or in --text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import quality_per_byte as quality
from tersor import reference_model
from tersor.core.errors import TersorError
from tersor.evaluation.statistics import mean_interval
from tersor.models import load
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.planning.analysing import Studied, Study, analyse
from tersor.pipeline.planning.goals import PlanGoal
from tersor.pipeline.planning.measuring import measure_plan
from tersor.pipeline.planning.planning import Planned, Planner
from tersor.pipeline.planning.targets import TARGETS
from tersor.pipeline.steps.planning import make_plan

FORMATS = ("q4_k_m", "q3_k_m", "q2_k")
RIVAL, STOCK, PLAN = "llama.cpp imatrix", "ours best", "plan"
SIZES = (2.6, 2.9, 3.2, 3.5, 3.9, 4.3, 4.8, 5.4, 6.2, 7.2)
"""Bits per weight of the plans whose predictions are checked."""
LAYERS = (2, 4, 8)
SCALING_SEQUENCES = 64


@dataclass(frozen=True)
class Row:
    """One file: bytes of its tensors, divergence in nats on held-out text with a 95 % interval."""

    format: str
    method: str
    nbytes: int
    kl: float
    kl_low: float
    kl_high: float


@dataclass(frozen=True)
class Prediction:
    """A plan of one size: what was asked and taken, predicted and measured.

    without_run  what would be predicted without the run of the method that moves predictions
    """

    asked: float
    taken: float
    predicted: float
    without_run: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted

    def ratio_believing(self, share: float) -> float:
        """Measured over predicted, had the run been believed by `share`: 0 not at all, 1 wholly; the product does half.

        Shares are of logarithms, and what is predicted now is half way.
        """
        moved: float = (self.predicted / self.without_run) ** (2 * share)
        return self.measured / (self.without_run * moved)


@dataclass(frozen=True)
class Cost:
    """CPU seconds of planning a model from nothing."""

    weights: int
    analysis_s: float
    plan_s: float


def planned_file(bench: quality.Bench, planned: Planned, output: Path) -> None:
    """Write the plan's file with the method it was made for."""
    output.parent.mkdir(exist_ok=True)
    how = How(method=planned.file.method, calibration=bench.calibration, proof=False)
    formats = planned.file.tensor_formats(bench.model)
    quantize_calibrated(bench.model, planned.file.file_type, output, how, tensor_formats=formats)


def at_equal_bytes(bench: quality.Bench, planner: Planner, file_type: str, place: Path) -> list[Row]:
    """Write and measure the mixture of `file_type` twice, and a plan of its size."""
    files, sizes = {}, {}
    for method in (RIVAL, STOCK):
        files[method] = place / f"{file_type}-{method.replace(' ', '-')}" / "model.gguf"
        files[method].parent.mkdir()
        sizes[method], _ = quality.write(bench, file_type, method, files[method])
    stock = make_plan(bench.model, file_type, calibration="text")
    planned = planner.plan(PlanGoal(bits_per_weight=stock.bits_per_weight))
    files[PLAN] = place / f"{file_type}-plan" / "model.gguf"
    planned_file(bench, planned, files[PLAN])
    sizes[PLAN] = int(planned.file.predicted["tensor_bytes"])
    found = []
    for method, (divergences, _) in quality.measured(bench, files).items():
        kl = mean_interval(np.array(divergences))
        found.append(Row(file_type, method, sizes[method], kl.value, kl.low, kl.high))
    return found


def predictions(bench: quality.Bench, planner: Planner, sizes: list[float], place: Path) -> list[Prediction]:
    """Write plans of several sizes and measure them beside what was predicted."""
    analysis = planner.analysis
    without = replace(analysis, measured=tuple(one for one in analysis.measured if one.what != "run"))
    planned = {f"{bits:g}": planner.plan(PlanGoal(bits_per_weight=bits)) for bits in sizes}
    files = {name: place / f"size-{name}" / "model.gguf" for name in planned}
    for name, one in planned.items():
        planned_file(bench, one, files[name])
    found = quality.measured(bench, files)
    return [
        Prediction(
            float(name),
            one.file.predicted["bits_per_weight"],
            one.kl,
            without.predicted(one.mix.loss, one.together),
            float(np.mean(found[name][0])),
        )
        for name, one in planned.items()
    ]


def random_llama(layers: int, folder: Path) -> Path:
    """Write a Llama of the reference model's shape with `layers` blocks of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 (only here, and slow)

    torch.manual_seed(layers)
    config = LlamaConfig.from_pretrained(reference_model.PATH)
    config.num_hidden_layers = layers
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_model.PATH / name, folder / name)
    return folder


def cost_of(layers: int, text: Path, place: Path) -> Cost:
    """Plan a model of random weights and count the seconds."""
    model = load(str(random_llama(layers, place / f"llama-{layers}")))
    study = Study(TARGETS["cpu"].formats, calibration=Calibration(text, SCALING_SEQUENCES, 256), threads=1)
    began = time.process_time()
    studied = analyse(model, place / f"analysis-{layers}", study)
    between = time.process_time()
    Planner(model, studied).plan(PlanGoal(bits_per_weight=4.0))
    end = time.process_time()
    return Cost(studied.analysis.weights, round(between - began, 1), round(end - between, 1))


def studied_model(bench: quality.Bench, place: Path, run_at: float) -> tuple[Studied, float]:
    """Analyse the bench's model for its calibration text, and move predictions by one run of the method at a size."""
    began = time.process_time()
    study = Study(TARGETS["cpu"].formats, calibration=bench.calibration, threads=1)
    studied = analyse(bench.model, place / "analysis", study)
    seconds = time.process_time() - began
    planned = Planner(bench.model, studied).plan(PlanGoal(bits_per_weight=run_at))
    return measure_plan(bench.model, studied, planned, threads=1)[1], seconds


def show(rows: list[Row], found: list[Prediction], costs: list[Cost]) -> None:
    """Print three tables."""
    console = Console(width=110)
    table = Table("file type", "method", "bytes", "mean KL, nats", "95 %", "/ imatrix", "/ ours best")
    for row in rows:
        rival, stock = (next(r.kl for r in rows if (r.format, r.method) == (row.format, m)) for m in (RIVAL, STOCK))
        figures = (f"{row.kl:.4g}", f"{row.kl_low:.3g} to {row.kl_high:.3g}", f"{row.kl / rival:.2f}")
        table.add_row(row.format, row.method, f"{row.nbytes:,}", *figures, f"{row.kl / stock:.2f}")
    console.print(table)
    table = Table("asked, bits per weight", "taken", "predicted KL", "measured KL", "measured / predicted")
    for one in found:
        taken = f"{one.taken:.4f} ({one.taken / one.asked - 1:+.2%})"
        table.add_row(f"{one.asked:g}", taken, f"{one.predicted:.4g}", f"{one.measured:.4g}", f"{one.ratio:.2f}")
    console.print(table)
    for share, belief in ((0.5, "as it is, half believed"), (1.0, "wholly believed"), (0.0, "without the run")):
        ratios = [one.ratio_believing(share) for one in found]
        within = sum(0.75 <= ratio <= 1.25 for ratio in ratios)
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        console.print(f"{within} of {len(found)} predictions within 25 % of what was measured, {belief}: {told}")
    if costs:
        table = Table("weights", "analysis, CPU s", "plan, CPU s", "analysis, s per M weights")
        for cost in costs:
            per = cost.analysis_s / cost.weights * 1e6
            table.add_row(f"{cost.weights:,}", f"{cost.analysis_s:.1f}", f"{cost.plan_s:.1f}", f"{per:.1f}")
        console.print(table)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", default=",".join(FORMATS), help="file types, comma-separated")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="bits per weight, comma-separated")
    parser.add_argument("--run-at", type=float, default=3.6, help="bits per weight of the run that moves predictions")
    parser.add_argument("--model", type=Path, default=reference_model.PATH, help="folder of another model")
    parser.add_argument("--text", type=Path, help="where its calibration.txt and eval.txt lie, if not beside it")
    parser.add_argument("--tokens", type=int, default=24_576, help="held-out tokens")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence and of a window")
    parser.add_argument("--no-scaling", action="store_true", help="leave out what planning costs at three sizes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    chosen = options()
    torch.set_num_threads(1)  # seconds of one thread
    rows: list[Row] = []
    costs: list[Cost] = []
    sizes = {"tokens": chosen.tokens, "sequences": chosen.sequences, "length": chosen.length}
    with tempfile.TemporaryDirectory() as made, torch.no_grad():
        place = Path(made)
        with quality.opened(chosen.model, chosen.text or chosen.model, place=place, **sizes) as bench:
            studied, seconds = studied_model(bench, place, chosen.run_at)
            print(f"analysed in {seconds:.1f} CPU s", file=sys.stderr)
            planner = Planner(bench.model, studied)
            for file_type in filter(None, chosen.formats.split(",")):
                rows += at_equal_bytes(bench, planner, file_type, place)
                print(f"{file_type} done", file=sys.stderr)
            found = predictions(bench, planner, [float(bits) for bits in chosen.sizes.split(",")], place)
            text = Path(bench.calibration.source)
        for layers in () if chosen.no_scaling else LAYERS:
            costs.append(cost_of(layers, text, place))
            print(f"{layers} layers done", file=sys.stderr)
    if chosen.json:
        document = {"rows": rows, "predictions": found, "costs": costs, "analysis_s": seconds}
        print(json.dumps(document, default=asdict, indent=2))
    else:
        show(rows, found, costs)


if __name__ == "__main__":
    try:
        main()
    except TersorError as error:
        raise SystemExit(f"plan_quality: {error}") from error
