"""What a plan really costs: the method goes through the model with the plan's formats, on the analysis's own text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tersor.analyse.analysis import Measured
from tersor.analyse.side_by_side import SideBySide
from tersor.calibrate.ranks import open_ranks
from tersor.calibrate.sequences import Sequences
from tersor.core.plan import Plan
from tersor.decoder import Decoder
from tersor.evaluation.statistics import Interval, mean_interval
from tersor.formats import get
from tersor.kernels.lazy import LazyModule
from tersor.models.model import Model
from tersor.pipeline.calibrated.run import Calibration, Prepared, Run, prepare
from tersor.pipeline.planning.analysing import Studied
from tersor.pipeline.planning.layout import full_plan
from tersor.pipeline.planning.plan_file import PlanFile
from tersor.pipeline.planning.planning import Planned

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["measure_plan"]

EMBEDDING = "token_embd.weight"
SIDE = "plan"


def measure_plan(
    model: Model,
    studied: Studied,
    planned: Planned,
    *,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Planned, Studied]:
    """Quantize with the plan and measure the divergence; return the plan with it, and an analysis that knows it.

    Nothing but the analysis is written: predictions from now on are moved by what this run came to.
    """
    analysis = studied.analysis
    kl = _divergence(model, studied, planned.file, threads=threads, progress=progress)
    said = f"{planned.file.predicted['bits_per_weight']:.2f} bits per weight"
    rows = [one for one in analysis.measured if (one.what, one.name) != ("run", said)]
    more = Measured("run", said, planned.mix.loss, kl.value, planned.together)
    analysis = replace(analysis, measured=(*rows, more) if planned.mix.loss > 0 else tuple(rows))
    measured = {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "tokens": int(studied.measured_on.size)}
    file = replace(planned.file, measured=measured)
    return replace(planned, file=file), studied.with_analysis(analysis)


def _divergence(
    model: Model,
    studied: Studied,
    file: PlanFile,
    *,
    threads: int,
    progress: Callable[[str, int, int], None] | None,
) -> Interval:
    analysis, ids = studied.analysis, studied.calibration
    plan = full_plan(model, file, analysis.method, analysis.calibration)
    text = Sequences(ids, analysis.calibration, "")
    with tempfile.TemporaryDirectory() as folder, open_ranks("cpu") as ranks:
        prepared = prepare(
            model,
            plan,
            Path(folder) / "plan.gguf",
            text=text,
            method=analysis.method,
            calibration=Calibration(sequences=len(ids), length=ids.shape[1]),
            ranks=ranks,
            run=Run(threads=threads, proof=False, progress=progress),
        )
        return mean_interval(_sides(model, studied, plan, prepared))


def _sides(model: Model, studied: Studied, plan: Plan, prepared: Prepared) -> npt.NDArray[np.float64]:
    """The divergence of each probe, nats."""
    decoder = Decoder(model)
    sources = {tensor.name: tensor for tensor in model.tensors}
    formats = {tensor.name: tensor.format for tensor in plan.tensors}

    def rows(name: str, start: int, stop: int) -> Tensor:
        fmt, source = get(formats[name]), sources[name]
        is_made = name in prepared.places
        data = prepared.rows(name, start, stop) if is_made else fmt.encode(source.read(start, stop))
        return torch.from_numpy(fmt.decode(data, source.columns))

    def embed(ids: Tensor) -> Tensor:
        wanted, places = torch.unique(ids, return_inverse=True)  # of a table of hundreds of thousands
        table = torch.cat([rows(EMBEDDING, int(one), int(one) + 1) for one in wanted])
        return table[places] * decoder.embedding_scale

    def head(start: int, stop: int) -> Tensor:
        return rows(decoder.matrix, start, stop)

    with torch.no_grad():
        sides = SideBySide(decoder, studied.measured_on)
        sides.begin({SIDE: embed})
        for layer in range(decoder.layers):
            block = decoder.block(layer)
            names = [name for name in block.weights if name in studied.surveyed.formats]
            weights = {name: rows(name, 0, sources[name].rows).reshape(block.weights[name].shape) for name in names}
            sides.through(block, {SIDE: weights})
        return sides.divergences({SIDE: head})[SIDE].kl
