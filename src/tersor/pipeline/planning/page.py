"""The pages that lie beside an analysis and a trade-off curve."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tersor.files.atomic import atomic_writer
from tersor.pages.plans.analysis import Costs, Facts, analysis_page, tradeoff_page
from tersor.pages.tradeoff import Point
from tersor.pipeline.planning.analysing import Studied
from tersor.pipeline.planning.sweep import Curve

__all__ = ["save_curve", "save_page"]

PAGE = "analysis.html"
HOW = {"single": "this tensor alone", "mix": "put together from candidates", "run": "by a run of the method"}


def save_page(studied: Studied) -> Path:
    """Write the page of an analysis into its folder, and return where."""
    analysis = studied.analysis
    costs = [
        Costs(tensor.name, tensor.shape, one.format, one.nbytes, one.kl, one.weight, one.importance, one.output)
        for tensor in analysis.tensors
        for one in tensor.candidates
    ]
    facts = Facts(
        analysis.model,
        analysis.method,
        analysis.calibration,
        {tensor.name: asdict(tensor.ranges) for tensor in analysis.tensors},
        [(one.name, HOW[one.what], one.estimated, one.measured) for one in analysis.measured],
    )
    return _save(studied.folder / PAGE, analysis_page(facts, costs))


def save_curve(model: str, curve: Curve, path: Path) -> Path:
    """Write the page of a trade-off curve."""
    points = [Point(f"{row.bits_per_weight:.2f}", row.file_bytes, row.kl) for row in curve.rows]
    others = [
        Point(f"{row.bits_per_weight:.2f}", row.file_bytes, row.measured.value, row.measured.low, row.measured.high)
        for row in curve.rows
        if row.measured is not None
    ]
    return _save(path, tradeoff_page(model, [row.shown() for row in curve.rows], points, others))


def _save(path: Path, text: str) -> Path:
    with atomic_writer(path) as file:
        file.write(text.encode())
    return path
