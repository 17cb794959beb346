"""Accuracy without labels: the mean of calibrated confidence (CBPE).

Source: Kivimäki, Białek, Nurminen and Kuberski 2024, "Confidence-based estimators for predictive performance in model
monitoring", arXiv:2407.08649. Differs: the interval takes in the calibration's own error.

It holds while a confidence means what it meant on the labelled sample: where *inputs* become harder or easier, not
where right answers change (concept drift), or the model turns sure and wrong, which a broken quantized model may well
do. Labels must come now and then to check it.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError
from tersor.deploy.monitor.calibration import Calibration
from tersor.evaluation.statistics import Interval

__all__ = ["estimated_accuracy"]


def estimated_accuracy(calibration: Calibration, confidences: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the interval of the accuracy that a window would show if its labels were known.

    Two things are uncertain: the answers themselves, each right with its probability; and the calibration, each block
    of which was measured on some labelled requests and moves all answers in it together. A block without exception
    has a share of (right + ½) / (requests + 1) for that purpose, for it is not certain either.

    confidences  [n] of the window, 0 … 1

    >>> calibration = Calibration((0.5, 0.9), (0.7, 1.0), (0.6, 0.95), (500, 500))
    >>> interval = estimated_accuracy(calibration, [0.6] * 100 + [0.95] * 300)
    >>> round(interval.value, 4), round(interval.low, 3), round(interval.high, 3)
    (0.8625, 0.827, 0.898)
    """
    if not 0 < confidence < 1:
        raise SchemeError(f"confidence lies between 0 and 1, such as 0.95, got {confidence:g}")
    probabilities = calibration.apply(confidences)
    n, counts = len(probabilities), np.array(calibration.counts, np.float64)
    inside = (np.array(calibration.shares) * counts + 0.5) / (counts + 1)
    weights = np.bincount(calibration.block(confidences), minlength=len(counts)) / n
    answers = float((weights * inside * (1 - inside)).sum()) / n
    measured = float((weights**2 * inside * (1 - inside) / counts).sum())
    value = float(probabilities.mean())
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(answers + measured)
    return Interval(value, max(0.0, value - half), min(1.0, value + half), n)
