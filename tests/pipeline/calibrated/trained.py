"""A quick training of tiny models, for the tests beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tersor.core.card import Card
from tersor.files.gguf import GgufFile
from tersor.models import Model, load
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.training import result
from tersor.pipeline.calibrated.training.settings import Training

Make = Callable[..., Model]
QUICK = Training(epochs=2, block_epochs=1, batch=8, stretch=4, rate=1e-2, scale_rate=1e-3)
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
"""Columns that blocks of 256 divide."""
REPORT = result.Report


def how(text: Path, method: str = "gptq+qat", **more: Any) -> How:
    calibration = Calibration(source=text, sequences=40, length=16, chunk=8)
    return How(**{"method": method, "calibration": calibration, "threads": 1, "training": QUICK, **more})


def quantized(model: Model, output: Path, settings: How, name: str = "q4_0") -> Card:
    card = quantize_calibrated(model, name, output, settings)
    assert card is not None
    return card


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor of a GGUF; its metadata names the method."""
    with GgufFile(path) as file:
        return {tensor.name: file.read_bytes(tensor.name).tobytes() for tensor in load(path).tensors}
