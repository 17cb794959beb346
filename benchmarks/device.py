"""One layer quantized on a GPU and on the processor of the same machine: seconds, memory, and whether they agree.

    python benchmarks/device.py [--device cuda] [--shapes 4096x4096 …] [--formats int4-g128 q4_k] [--methods gptq best]

Each pair gets the same random weight and the same Hessian, in float32; the arrays lie where the method runs. Times are
the medians of --rounds, after one run that warms up. `error` is that of the outputs, as a share of their power.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median

import numpy as np
import torch

from peers_gptq import SHAPES, make_hessian
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.methods import METHODS, output_error
from tersor.pipeline.steps.provenance import machine

SEED = 1
HEADING = (
    f"{'shape':11} {'format':10} {'method':10} {'CPU s':>8} {'there s':>8} {'×':>6} {'error':>10} {'there':>10} "
    f"{'same %':>7} {'peak MiB':>9}"
)


@dataclass(frozen=True)
class Row:
    """What was seen of one method on one shape.

    same  share of bytes that both devices agree on
    peak  bytes of device memory above the arrays that were given
    """

    shape: str
    format: str
    method: str
    cpu_s: float
    device_s: float
    cpu_error: float
    device_error: float
    same: float
    peak: int

    def shown(self) -> str:
        """The row as text."""
        return (
            f"{self.shape:11} {self.format:10} {self.method:10} {self.cpu_s:8.2f} {self.device_s:8.2f} "
            f"{self.cpu_s / self.device_s:6.2f} {self.cpu_error:10.3e} {self.device_error:10.3e} "
            f"{100 * self.same:7.2f} {self.peak / 2**20:9.0f}"
        )


def timed(
    method: str, name: str, weight: torch.Tensor, hessian: torch.Tensor, rounds: int
) -> tuple[QuantizedTensor, float]:
    """Return the result and the median of the seconds."""
    seconds = []
    for _ in range(rounds + 1):
        needs = dict.fromkeys(METHODS[method].needs, hessian.clone())  # a factor is kept as long as its Hessian lives
        began = time.perf_counter()
        found = METHODS[method].function(weight, get(name), **needs)
        seconds.append(time.perf_counter() - began)
    return found, median(seconds[1:])


def compared(shape: str, name: str, method: str, options: argparse.Namespace) -> Row:
    """Quantize one weight on both devices."""
    rows, columns = map(int, shape.split("x"))
    random = np.random.default_rng(SEED)
    weight = torch.from_numpy(random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5))
    hessian = torch.from_numpy(make_hessian(columns, random))
    near, cpu_s = timed(method, name, weight, hessian, options.rounds)
    there = weight.to(options.device), hessian.to(options.device)
    base = _reset(options.device)
    far, device_s = timed(method, name, *there, options.rounds)
    peak = torch.cuda.max_memory_allocated() - base if base is not None else 0
    energy = output_error(weight, torch.zeros_like(weight), hessian)
    ours, theirs = (output_error(weight, torch.from_numpy(one.dequantize()), hessian) / energy for one in (near, far))
    same = float((near.data == far.data).mean())
    return Row(shape, name, method, cpu_s, device_s, ours, theirs, same, peak)


def _reset(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def main() -> None:
    """Measure and print, each row when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="of the layers, rows x columns")
    parser.add_argument("--formats", nargs="*", default=["int4-g128", "q4_k"])
    parser.add_argument("--methods", nargs="*", default=["gptq", "best"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of the table")
    options = parser.parse_args()
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    about = {"machine": machine(), "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about["date"] = datetime.now(UTC).date().isoformat()
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        print(HEADING)
    rows = []
    with torch.no_grad():
        for shape in options.shapes:
            for fmt in options.formats:
                for method in options.methods:
                    rows.append(compared(shape, fmt, method, options))
                    if not options.json:
                        print(rows[-1].shown(), flush=True)
    if options.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
