"""How an analysis and a plan look on the screen."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tersor.analyse.allocation import Mix
from tersor.analyse.analysis import AnalysedTensor, Analysis, Candidate
from tersor.cli.screen.output import console, print_json, table
from tersor.core.errors import SchemeError
from tersor.core.quantities import number, size
from tersor.core.records import plain
from tersor.pipeline.planning.page import save_curve
from tersor.pipeline.planning.sweep import Curve

__all__ = ["analysis_table", "checks", "explanation", "named", "plan_summary", "protected", "show_curve"]


def analysis_table(analysis: Analysis) -> None:
    """Print what every tensor costs in every format, the most sensitive first."""
    kinds = list(dict.fromkeys(one.format for tensor in analysis.tensors for one in tensor.candidates))
    shown = table("tensor", "weights", "outliers", *kinds)
    for tensor in sorted(analysis.tensors, key=_sensitivity, reverse=True):
        weights = 1
        for axis in tensor.shape:
            weights *= axis
        found = {one.format: f"{one.kl:.1e}" for one in tensor.candidates}
        outliers = f"{tensor.ranges.outliers:.2g}"
        shown.add_row(tensor.name, f"{weights:,}", outliers, *(found.get(kind, "") for kind in kinds))
    shown.title = "divergence if only this tensor took the format, nats per token"
    console().print(shown)


def _sensitivity(tensor: AnalysedTensor) -> float:
    """Divergence per byte saved, of the smallest candidate."""
    small = min(tensor.candidates, key=lambda one: one.nbytes)
    return small.kl / max(small.nbytes, 1)


def checks(analysis: Analysis) -> list[str]:
    """Return a line on each estimate that was held against a measurement."""
    lines = []
    for one in analysis.measured:
        what = {"single": "alone", "mix": "put together", "run": "by the method"}[one.what]
        lines.append(
            f"  {one.name}, {what}: estimated {number(one.estimated, 3)}, measured {number(one.measured, 3)} "
            f"({one.measured / one.estimated:.2f}×)"
        )
    return lines


def plan_summary(analysis: Analysis, mix: Mix, figures: dict[str, float], measured: dict[str, float]) -> str:
    """Return a plan in a few lines."""
    counts = Counter(mix.formats.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    rise = figures["perplexity_increase_percent"]
    held = f"{figures['bits_per_weight']:.4g} bits per weight, file of {size(int(figures['file_bytes']))}"
    predicted = f"predicted divergence {number(figures['kl'], 3)} nats (perplexity about {rise:.2g} % higher)"
    lines = [f"{analysis.model}: {held}", predicted]
    if measured:
        lines.append(
            f"measured divergence {number(measured['kl'], 3)} nats, 95 % interval {number(measured['kl_low'], 3)} to "
            f"{number(measured['kl_high'], 3)}"
        )
    return "\n".join([*lines, f"tensors: {kinds}", *(protected(analysis, mix))]) + "\n"


def protected(analysis: Analysis, mix: Mix) -> list[str]:
    """Return lines on which tensors got most bits, and on what evidence."""
    rows = []
    for tensor in analysis.tensors:
        chosen = tensor.candidate(mix.formats[tensor.name])
        small = min(tensor.candidates, key=lambda one: one.nbytes)
        if chosen is not None and chosen is not small:
            rows.append((small.kl, tensor.name, chosen.format, small.format))
    rows.sort(reverse=True)
    return [
        f"protected: {name} as {kind} ({fallen} would cost {number(loss, 2)} nats alone)"
        for loss, name, kind, fallen in rows[:3]
    ]


def explanation(analysis: Analysis, mix: Mix, name: str) -> str:
    """Return why a tensor got its format: what every other one would cost or save, beside what bytes are worth."""
    tensor = next(one for one in analysis.tensors if one.name == name)
    chosen = tensor.candidate(mix.formats[name])
    assert chosen is not None, "a mix of other candidates"
    price = _price(analysis, mix)
    share = chosen.kl / mix.loss if mix.loss > 0 else 0.0
    ranges = tensor.ranges
    lines = [f"{name} {tensor.shape}: {_chosen(chosen)} alone, {share:.1%} of the plan's"]
    if ranges.rms > 0:
        times = number(ranges.largest / ranges.rms, 3)
        lines.append(
            f"weights: the largest is {times} times their rms, kurtosis {number(ranges.tail, 3)}, "
            f"{ranges.outliers:.2g} of them outliers"
        )
    shown = sorted(tensor.candidates, key=lambda one: (one.nbytes, one.kl))
    lines += [f"  {_chosen(one)}{_error(one)}: {_verdict(one, chosen, price)}" for one in shown]
    lines.append(
        f"a byte is worth {number(price, 3)} nats at this size: no tensor of the plan could give one up for less"
    )
    return "\n".join(lines) + "\n"


def _chosen(one: Candidate) -> str:
    return f"{one.format}, {size(one.nbytes)}, {one.kl:.2e} nats"


def _error(one: Candidate) -> str:
    return "" if one.output is None else f", output error {one.output:.2%}"


def _verdict(one: Candidate, chosen: Candidate, price: float) -> str:
    """Say what another format would change, beside what the same bytes change elsewhere."""
    more, worse = one.nbytes - chosen.nbytes, one.kl - chosen.kl
    if one is chosen:
        return "chosen"
    if more >= 0 and worse >= 0:
        return "no smaller and no better"
    if more < 0 and worse <= 0:
        return f"saves {size(-more)} and is no worse"
    if more < 0:
        return f"saves {size(-more)} for {number(worse, 2)} nats; elsewhere they cost {number(-more * price, 2)}"
    return f"gains {number(-worse, 2)} nats for {size(more)}; elsewhere they are worth {number(more * price, 2)}"


def _price(analysis: Analysis, mix: Mix) -> float:
    """Nats per byte at the mix: the least that giving up bytes costs, over all tensors and smaller candidates."""
    found = []
    for tensor in analysis.tensors:
        chosen = tensor.candidate(mix.formats[tensor.name])
        assert chosen is not None, "a mix of other candidates"
        for one in tensor.candidates:
            if one.nbytes < chosen.nbytes:
                found.append(max(one.kl - chosen.kl, 0.0) / (chosen.nbytes - one.nbytes))
    return min(found, default=0.0)


def named(analysis: Analysis, text: str) -> str:
    """Return the tensor or operator that is meant: its whole name, or all of it but the last word."""
    names = [tensor.name for tensor in analysis.tensors]
    found = [name for name in names if name in (text, f"{text}.weight")]
    if not found:
        near = difflib.get_close_matches(text, names, n=3)
        raise SchemeError(f"no tensor that has a choice is called {text!r}; near it are {', '.join(near or names[:3])}")
    return found[0]


def show_curve(model: str, curve: Curve, output: Path | None, *, as_json: bool) -> None:
    """Save a trade-off curve as a page where `output` says so, and print it."""
    if output is not None:
        save_curve(model, curve, output)
    if as_json:
        print_json(plain({"rows": curve.rows}))
        return
    _sweep_table([dict(row.shown()) for row in curve.rows])
    if output is not None:
        sys.stdout.write(f"wrote {output}\n")


def _sweep_table(rows: Sequence[dict[str, object]]) -> None:
    keys = list(rows[0])
    shown = table(*keys)
    for row in rows:
        shown.add_row(*(str(row[key]) for key in keys))
    console().print(shown)
