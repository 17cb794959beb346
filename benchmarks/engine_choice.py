"""Does `tersor optimize` choose well? On six nets: its choice against every way there is, in a race of its own.

    python benchmarks/engine_choice.py [--nets resnet18 …] [--rounds 15] [--threads 1,2] [--clock processor] [--json]

For each net the choice is made first, as `tersor optimize` makes it. Then every way (engine, threads, settings) runs
again, in turn, in new processes, and the choice is held against the best and the worst of that second race, by the
lower quartile over rounds of the shortest run of a round. Random weights: only time is measured. Engines are those that
are installed beside tersor (OpenVINO: pip install openvino). On a busy machine: --clock processor --threads 1.

  resnet18, mobilenetv2            images of 224 × 224, float32
  resnet18-int8, mobilenetv2-int8  the same on integers, quantized here for ONNX Runtime
  resnet20                         images of 32 × 32
  encoder                          four layers of a transformer, width 384, 128 tokens
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import nets
from tersor.evaluation.nets.running.engines import NET_ENGINES, Clock, Way, installed, ways
from tersor.evaluation.nets.running.race import Entry, Sizes, race_ways
from tersor.graph.capture import capture
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe, quantize_net
from tersor.pipeline.steps.provenance import machine
from tersor.pipeline.targets.optimize import optimize
from tersor.targets.processor import busy_cores

AT_ONCE = 6


class Layer(nn.Module):
    """Attention of six heads, then a feed-forward part, norms before."""

    def __init__(self, width: int = 384, inner: int = 1536, heads: int = 6) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, tokens, width]."""
        n, tokens, width = x.shape
        parts = self.qkv(self.first(x)).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(parts[0] @ parts[1].transpose(-1, -2) / (width // self.heads) ** 0.5, -1)
        x = x + self.out((scores @ parts[2]).transpose(1, 2).reshape(n, tokens, width))
        made: Tensor = x + self.down(nn.functional.gelu(self.up(self.second(x))))
        return made


def encoder() -> Net:
    """Four layers."""
    torch.manual_seed(0)
    return capture(nn.Sequential(*(Layer() for _ in range(4))).eval(), (torch.randn(1, 128, 384),), name="encoder")


def images(module: nn.Module, side: int, name: str) -> Net:
    """A net for images, with batch norms that have seen noise."""
    settled = nets.settled(module, (4, 3, side, side))
    return capture(settled, (torch.randn(1, 3, side, side),), name=name)


def rounded(net: Net) -> Net:
    """The net on integers."""
    shape = [int(size) if isinstance(size, int) else 1 for size in net.inputs[0].shape or ()]
    random = np.random.default_rng(0)
    return quantize_net(net, [random.standard_normal(shape, dtype=np.float32) for _ in range(4)], Recipe()).net


NETS: dict[str, Callable[[], Net]] = {
    "resnet18": lambda: images(nets.ResNet18(), 224, "resnet18"),
    "resnet18-int8": lambda: rounded(NETS["resnet18"]()),
    "mobilenetv2": lambda: images(nets.MobileNetV2(), 224, "mobilenetv2"),
    "mobilenetv2-int8": lambda: rounded(NETS["mobilenetv2"]()),
    "resnet20": lambda: images(nets.ResNet20(), 32, "resnet20"),
    "encoder": encoder,
}


@dataclass(frozen=True)
class Row:
    """One net: the choice, and where it stands among all ways; milliseconds."""

    net: str
    chosen: str
    chosen_ms: float
    best: str
    best_ms: float
    worst: str
    worst_ms: float
    usual_ms: float
    ways: int
    search_s: float

    @property
    def over_best(self) -> float:
        """Time of the choice as a multiple of the best."""
        return self.chosen_ms / self.best_ms


def measured(name: str, folder: Path, threads: tuple[int, ...], rounds: int, clock: Clock) -> Row:
    """Choose, then race every way."""
    path = folder / f"{name}.onnx"
    NETS[name]().save(path)
    engines = tuple(engine for engine in NET_ENGINES if not installed(engine))
    found = optimize(path, engines=engines, threads=threads, rounds=rounds, clock=clock)
    entries = second_race(path, ways(engines, threads, every_setting=True), rounds, clock)
    ran = sorted((entry for entry in entries if entry.blocks), key=lambda entry: entry.score)
    chosen = next(entry for entry in ran if entry.way == found.way())
    usual = next(entry for entry in ran if entry.way.engine == "onnxruntime" and entry.way.threads == max(threads))
    scores = [1e3 * entry.score for entry in (chosen, ran[0], ran[-1], usual)]
    return Row(
        name,
        str(chosen.way),
        scores[0],
        str(ran[0].way),
        scores[1],
        str(ran[-1].way),
        scores[2],
        scores[3],
        len(ran),
        found.seconds,
    )


def second_race(path: Path, every: list[Way], rounds: int, clock: Clock) -> list[Entry]:
    """All ways side by side, as many at once as there is room for; each group has the first way, to compare by."""
    first, rest = every[0], every[1:]
    entries: list[Entry] = []
    for start in range(0, len(rest), AT_ONCE):
        group = race_ways(
            [(path, way) for way in (first, *rest[start : start + AT_ONCE])], Sizes(), rounds=rounds, clock=clock
        )
        if entries and group[0].blocks and entries[0].blocks:  # the machine may have been slower meanwhile
            factor = entries[0].score / group[0].score
            for entry in group[1:]:
                entry.blocks = [block * factor for block in entry.blocks]
        entries += group if not entries else group[1:]
    return entries


def main(arguments: list[str]) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    threads = tuple(int(word) for word in given.threads.split(","))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.nets:
            rows.append(measured(name, Path(folder), threads, given.rounds, given.clock))
            row = rows[-1]
            print(
                f"{row.net:17} {row.chosen_ms:8.3f} ms  {row.over_best:5.2f}× the best of {row.ways} ways  "
                f"{row.chosen_ms / row.worst_ms:5.2f}× the worst  {row.chosen_ms / row.usual_ms:5.2f}× the usual  "
                f"{row.search_s:4.0f} s  {row.chosen}  (best {row.best})",
                file=sys.stderr,
                flush=True,
            )
    facts = {"machine": machine(), "load_average": busy_cores(), "rounds": given.rounds, "clock": given.clock}
    if given.json:
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{facts['machine']}, load average {facts['load_average']}, {given.rounds} rounds, {given.clock} time\n")
    print("| net | choice | ms | × best | × worst | × usual (ONNX Runtime, all threads) | search, s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        ratios = f"{row.over_best:.2f} | {row.chosen_ms / row.worst_ms:.2f} | {row.chosen_ms / row.usual_ms:.2f}"
        print(f"| {row.net} | {row.chosen} | {row.chosen_ms:.2f} | {ratios} | {row.search_s:.0f} |")
    worst = max(row.over_best for row in rows)
    print(f"\nthe choice was within {worst - 1:.0%} of the best on every net")


if __name__ == "__main__":
    main(sys.argv[1:])
