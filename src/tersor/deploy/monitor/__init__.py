"""MONITOR: drift of inputs and activations from the calibration data, and accuracy where no label comes. No I/O."""

from __future__ import annotations

from tersor.deploy.monitor.budget import FalseAlarmBudget, adjusted_p_values, alarming
from tersor.deploy.monitor.calibration import Calibration, isotonic
from tersor.deploy.monitor.clipping import Clipping, ClippingReference, clipping
from tersor.deploy.monitor.drift import Distance, Drift, distances, drift
from tersor.deploy.monitor.performance import estimated_accuracy
from tersor.deploy.monitor.reference import Categories, Histogram, Reference

__all__ = [
    "Calibration",
    "Categories",
    "Clipping",
    "ClippingReference",
    "Distance",
    "Drift",
    "FalseAlarmBudget",
    "Histogram",
    "Reference",
    "adjusted_p_values",
    "alarming",
    "clipping",
    "distances",
    "drift",
    "estimated_accuracy",
    "isotonic",
]
