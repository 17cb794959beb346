"""Whether a net on integers may serve: it runs, says what full precision says, and no less than what serves now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import EngineError, SchemeError, TersorError
from tersor.deploy.gating.record import GateCheck, GateRecord, Outcome
from tersor.evaluation.nets.calling import scores_of
from tersor.evaluation.paired import Pairs, paired_difference_interval
from tersor.evaluation.statistics import proportion_interval
from tersor.graph.sessions import QUIET, Feeds
from tersor.kernels.lazy import LazyModule
from tersor.pipeline.deploy.gate import recorded

if TYPE_CHECKING:
    import onnxruntime
else:
    onnxruntime = LazyModule("onnxruntime", "onnx")

__all__ = ["MARGIN", "gate_net"]

MARGIN = 0.03
"""Share of answers that may differ from full precision's: what the alert LowAgreement takes for too many."""


def gate_net(
    artefact: Path, *, against: Path, present: Path | None, data: Iterable[Feeds], margin: float = MARGIN, command: str
) -> GateRecord:
    """Judge a net on inputs that it was not calibrated with; nothing is written.

    against  full precision
    present  what serves now: the new one must not surely agree less; None: nothing does
    data     batches of inputs, by name
    margin   the 95 % interval of the agreement has to lie above 1 − margin
    """
    batches = list(data)
    try:
        said = _said(artefact, batches)
        checks = [GateCheck("running", "PASS", f"it runs, and {len(said)} answers are finite")]
        full = _said(against, batches)
        checks.append(_agreement(said, full, margin))
        if present is not None:
            checks.append(_beside(said, _said(present, batches), full))
    except TersorError as error:
        checks = [GateCheck("running", "FAIL", "it cannot be compared", (str(error).split("\n", maxsplit=1)[0],))]
    return recorded(artefact, against.name, checks, command)


def _said(path: Path, batches: Iterable[Feeds]) -> np.ndarray[Any, Any]:
    """The class of each item by the first output, in the engine that serves it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        first = session.get_outputs()[0].name
        found = [scores_of(session.run([first], dict(feeds))[0]).argmax(axis=1) for feeds in batches]
    except TersorError:
        raise
    except Exception as error:  # its exceptions have no common base but Exception
        raise EngineError(f"{path.name}: {' '.join(str(error).split())[:200]}") from error
    if not found:
        raise SchemeError("there is nothing to judge by")
    return np.concatenate(found)


def _agreement(said: np.ndarray[Any, Any], full: np.ndarray[Any, Any], margin: float) -> GateCheck:
    found = proportion_interval((said == full).astype(np.float64))
    outcome: Outcome = "PASS" if found.low >= 1 - margin else "FAIL" if found.high < 1 - margin else "INCONCLUSIVE"
    detail = f"{found.value:.2%} of {len(said)} answers are full precision's, {found.low:.2%} to {found.high:.2%}"
    numbers = {"agreement": found.value, "low": found.low, "high": found.high, "limit": 1 - margin}
    return GateCheck("quality", outcome, detail, (), numbers)


def _beside(said: np.ndarray[Any, Any], present: np.ndarray[Any, Any], full: np.ndarray[Any, Any]) -> GateCheck:
    ours, theirs = said == full, present == full
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    found = paired_difference_interval(Pairs(wins, losses, len(said) - wins - losses))
    detail = f"{100 * found.value:+.2f} points of agreement beside what serves, {100 * found.low:+.2f} to "
    detail += f"{100 * found.high:+.2f}"
    numbers = {"difference": found.value, "low": found.low, "high": found.high}
    return GateCheck("present", "FAIL" if found.high < 0 else "PASS", detail, (), numbers)
