"""What a run keeps of a finished block is as long as its numbers are, and no sum is turned into means twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.workspace import Finished, Workspace
from tersor.models import Model
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration

pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")


def quantize(model: Model, text: Path, output: Path, method: str) -> None:
    calibration = Calibration(source=text, sequences=24, length=32, chunk=4)
    quantize_calibrated(model, "q4_0", output, How(method=method, calibration=calibration, threads=1, proof=False))


def test_the_importance_of_every_input_is_kept_in_four_bytes(
    make: Callable[..., Model], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[str] = []
    original = Workspace.save

    def save(self: Workspace, layer: int, finished: Finished) -> None:
        original(self, layer, finished)
        heads.append(self._file(layer).read_bytes().split(b"\n", 1)[0].decode())
        loaded = self.load(layer)
        assert loaded is not None
        for name, note in finished.notes.items():
            for one, other in zip(note["squares"], loaded.notes[name]["squares"], strict=True):
                np.testing.assert_array_equal(one, other)

    monkeypatch.setattr(Workspace, "save", save)
    model = make("MixtralConfig", num_local_experts=4, num_experts_per_tok=2)
    quantize(model, text, tmp_path / "m.gguf", "gptq")
    notes = [row["notes"] for row in json.loads(heads[0])["tensors"]]
    assert {json.dumps(one) for note in notes for one in note["squares"]} == {'{"float32": [64]}', '{"float32": [96]}'}


def test_the_mean_hessian_of_an_input_is_made_once(
    make: Callable[..., Model], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sums] = []  # kept alive, so that none is taken for another
    original = Sums.hessian

    def hessian(self: Sums) -> Any:
        seen.append(self)
        return original(self)

    monkeypatch.setattr(Sums, "hessian", hessian)
    quantize(make(), text, tmp_path / "m.gguf", "qronos")
    assert seen
    assert len({id(sums) for sums in seen}) == len(seen)
