"""Does `tersor optimize` choose well? On six nets: its choice against every way there is, in races of its own.

    python benchmarks/engine_choice.py [--nets resnet18 …] [--rounds 15] [--threads 1,2] [--clock processor] [--json]

For each net the choice is made first, as `tersor optimize` makes it. Then every way (engine, threads, settings) runs
again in new processes, and the choice, the three best of these, the worst and the usual one run a third time, side by
side, in new processes again and four times as many rounds. The choice is held against the fastest of that duel by the
median ratio of times of the same round, each the shortest run of its round, with its 95 % interval: what disturbs the
machine disturbs all of a round. "open" is an interval that holds 1.05. Random weights: only time is measured. Engines
are those that are installed beside tersor (OpenVINO: pip install openvino). On a very busy machine: --clock processor
--threads 1.

  resnet18, mobilenetv2            images of 224 × 224, float32
  resnet18-int8, mobilenetv2-int8  the same on integers, quantized here for ONNX Runtime
  resnet20                         images of 32 × 32
  encoder                          four layers of a transformer, width 384, 128 tokens
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import nets
from tersor.evaluation.nets.running.choosing import best_way
from tersor.evaluation.nets.running.engines import NET_ENGINES, Clock, installed, ways
from tersor.evaluation.nets.running.race import Sizes, race_ways
from tersor.evaluation.speed.deciding import leader, paired_ratio
from tersor.evaluation.speed.summary import order_interval
from tersor.graph.capture import capture
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe, quantize_net
from tersor.pipeline.steps.provenance import machine
from tersor.pipeline.targets.optimize import optimize
from tersor.targets.processor import busy_cores

LIMIT = 1.05
RIVALS, DUEL = 3, 4
"""How many of the best of the second race the choice meets again, and in how many times as many rounds."""


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
    """One net: the choice, and where it stands among all ways.

    chosen_ms            the lower quartile over rounds
    over_best, low, high  its time as a multiple of the fastest of the duel, with the 95 % interval
    over_worst, over_usual  the same of the slowest way, and of ONNX Runtime with all threads
    """

    net: str
    chosen: str
    chosen_ms: float
    best: str
    over_best: float
    low: float
    high: float
    over_worst: float
    over_usual: float
    ways: int
    search_s: float

    @property
    def verdict(self) -> str:
        """Whether the choice is within LIMIT of the best."""
        return "yes" if self.high <= LIMIT else "no" if self.low > LIMIT else "open"


def measured(name: str, folder: Path, threads: tuple[int, ...], rounds: int, clock: Clock) -> Row:
    """Choose, race every way again, and let the choice duel with those that matter."""
    path = folder / f"{name}.onnx"
    NETS[name]().save(path)
    engines = tuple(engine for engine in NET_ENGINES if not installed(engine))
    found = optimize(path, engines=engines, threads=threads, rounds=rounds, clock=clock)
    every = ways(engines, threads, every_setting=True)
    second = best_way(path, every, Sizes(), rounds=rounds, clock=clock, agrees=lambda *_: True)
    ran = [one.entry.way for one in second if one.ratio is not None]
    usual = next(way for way in every if way.engine == "onnxruntime" and way.threads == max(threads))
    worst = max((one for one in second if one.ratio is not None), key=lambda one: one.ratio or 0.0).entry.way
    contenders = {str(way): way for way in (found.way(), *ran[:RIVALS], worst, usual)}
    duel = race_ways([(path, way) for way in contenders.values()], Sizes(), rounds=DUEL * rounds, clock=clock)
    entries = {str(entry.way): entry for entry in duel if entry.blocks}
    fastest = list(entries.values())[leader([entry.blocks for entry in entries.values()])]
    chosen = entries[str(found.way())]
    low, high = order_interval([a / b for a, b in zip(chosen.blocks, fastest.blocks, strict=True)]) or (0.0, math.inf)
    return Row(
        name,
        str(chosen.way),
        1e3 * chosen.score,
        str(fastest.way),
        paired_ratio(chosen.blocks, fastest.blocks),
        low,
        high,
        paired_ratio(chosen.blocks, entries[str(worst)].blocks),
        paired_ratio(chosen.blocks, entries[str(usual)].blocks),
        len(ran),
        found.seconds,
    )


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
                f"{row.net:17} {row.chosen_ms:8.3f} ms  {row.over_best:5.3f}× ({row.low:.3f}–{row.high:.3f}) the best "
                f"of {row.ways} ways  {row.over_worst:5.2f}× the worst  {row.over_usual:5.2f}× the usual  "
                f"{row.search_s:4.0f} s  {row.chosen}  (best {row.best})",
                file=sys.stderr,
                flush=True,
            )
    facts = {"machine": machine(), "load_average": busy_cores(), "rounds": given.rounds, "clock": given.clock}
    if given.json:
        print(json.dumps({**facts, "rows": [asdict(row) | {"verdict": row.verdict} for row in rows]}))
        return
    print(f"{facts['machine']}, load average {facts['load_average']}, {given.rounds} rounds, {given.clock} time\n")
    print(
        "| net | choice | ms | × best (95 %) | within 5 % | × worst | × usual (ONNX Runtime, all threads) | search, s |"
    )
    print("|---|---|---:|---:|---|---:|---:|---:|")
    for row in rows:
        ratio = f"{row.over_best:.3f} ({row.low:.3f}–{row.high:.3f}) | {row.verdict}"
        rest = f"{row.over_worst:.2f} | {row.over_usual:.2f} | {row.search_s:.0f}"
        print(f"| {row.net} | {row.chosen} | {row.chosen_ms:.2f} | {ratio} | {rest} |")
    told, never = Counter(row.verdict for row in rows), all(row.over_worst <= 1 for row in rows)
    print(
        f"\nwithin {LIMIT - 1:.0%} of the best: {told['yes']} of {len(rows)} nets, {told['no']} not, "
        f"{told['open']} open; never slower than the worst: {never}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
