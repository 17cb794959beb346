"""Calibration on a GPU gives what it gives on the processor, but for the last bits of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tersor.core.arrays import Bytes
from tersor.core.card import Card
from tersor.files.gguf import GgufFile
from tersor.kernels import feedback
from tersor.kernels.reference import blocked
from tersor.models import Model
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
METHODS = [
    *("rtn", "gptq", "gptaq", "foem", "qronos", "hqq", "autoround", "best"),
    *("awq", "smoothquant+gptq", "hadamard+best", "gptq+qat"),
]
PAIRED = ("gptaq", "qronos", "best", "hadamard+best", "gptq+qat")
"""They weigh errors of earlier layers, or train: one code that falls the other way moves all that follow."""
EQUAL_BYTES = 0.97
"""Least share of bytes that are equal for the others: a code at the middle of two values falls either way."""


def quantized(model: Model, text: Path, output: Path, *, method: str, name: str, device: str) -> tuple[Card, Bytes]:
    calibration = Calibration(source=text, sequences=24, length=32, chunk=4)
    how = How(method=method, calibration=calibration, threads=1, device=device, force=True)
    card = quantize_calibrated(model, name, output, how)
    assert card is not None
    file = GgufFile(output)
    rows = [file.read_bytes(one, 0, int(np.prod(t.shape[:-1]))).reshape(-1) for one, t in sorted(file.tensors.items())]
    file.close()
    return card, np.concatenate(rows)


def divergence(card: Card) -> float:
    return next(metric.value for metric in card.evaluations[0].metrics if metric.name == "kl_mean")


def check_alike(found: tuple[Card, Bytes], expected: tuple[Card, Bytes], method: str) -> None:
    if method not in PAIRED:
        assert (found[1] == expected[1]).mean() >= EQUAL_BYTES
    assert divergence(found[0]) == pytest.approx(divergence(expected[0]), rel=0.15 if method in PAIRED else 0.05)


@pytest.mark.parametrize("method", ["gptq", "best", "awq"])
def test_what_a_gpu_takes_does_as_well_on_the_processor(
    method: str, make: Callable[..., Model], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    expected = quantized(model, text, tmp_path / "a.gguf", method=method, name="q4_0", device="cpu")
    monkeypatch.setattr(feedback, "_native", lambda state: None)
    monkeypatch.setattr(feedback, "_definition", lambda state: blocked)
    check_alike(quantized(model, text, tmp_path / "b.gguf", method=method, name="q4_0", device="cpu"), expected, method)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_a_run_on_cuda_equals_one_on_the_processor(
    name: str, method: str, make: Callable[..., Model], text: Path, tmp_path: Path
) -> None:
    model = make()
    expected = quantized(model, text, tmp_path / "near.gguf", method=method, name=name, device="cpu")
    found = quantized(model, text, tmp_path / "far.gguf", method=method, name=name, device="cuda")
    check_alike(found, expected, method)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("method", ["gptq", "best", "awq"])
def test_experts_on_cuda(method: str, make: Callable[..., Model], text: Path, tmp_path: Path) -> None:
    model = make("MixtralConfig", num_local_experts=4, num_experts_per_tok=2)
    expected = quantized(model, text, tmp_path / "near.gguf", method=method, name="q4_0", device="cpu")
    found = quantized(model, text, tmp_path / "far.gguf", method=method, name="q4_0", device="cuda")
    check_alike(found, expected, method)
