from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.net import Net, constant
from tersor.pipeline.nets.quantizing import NetHow, quantize_network
from tersor.pipeline.nets.training import Training

from .conftest import images

torch = pytest.importorskip("torch", reason="trains in torch: pip install 'tersor[torch]'")


def batches(seed: int = 2) -> list[Any]:
    pixels, labels = images(96, seed)
    x = pixels.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    return [
        (torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(np.split(x, 6), np.split(labels, 6), strict=True)
    ]


def retrained(graph: Net) -> Net:
    """The same net, with weights that are a little other."""
    made = graph.copy()
    weight = constant(made.value("second.weight"))
    assert weight is not None
    made.set_constant("second.weight", weight * np.float32(1.01))
    return made


def test_checkpoints_of_another_net_or_of_other_data_are_not_gone_on_from(graph: Net, tmp_path: Path) -> None:
    training = Training(batches(), epochs=2, rate=0.01, folder=tmp_path / "work")
    how = NetHow(calibration=batches(), training=training, bench=False, threads=1)
    first = quantize_network(graph, "int2", how)
    resumed = replace(how, training=replace(training, resume=True))
    assert quantize_network(graph, "int2", resumed).quantized.net.to_bytes() == first.quantized.net.to_bytes()
    with pytest.raises(SchemeError, match="made with another net: "):
        quantize_network(retrained(graph), "int2", resumed)
    other = replace(training, data=batches(3), resume=True)
    with pytest.raises(SchemeError, match="made with another data: "):
        quantize_network(graph, "int2", replace(how, training=other))
    alone = quantize_network(retrained(graph), "int2", replace(how, training=replace(training, folder=None)))
    anew = quantize_network(retrained(graph), "int2", how)
    assert anew.quantized.net.to_bytes() == alone.quantized.net.to_bytes()
