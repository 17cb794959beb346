"""The second-order estimate, against divergences that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tersor.analyse.projections import held_bytes, project
from tersor.analyse.side_by_side import FULL, SideBySide
from tersor.decoder import Decoder
from tersor.models.model import ModelTensor

if TYPE_CHECKING:
    import torch
    from tests.analyse.conftest import Case
    from torch import Tensor
else:
    torch = pytest.importorskip("torch")


@dataclass
class Small:
    """Changes so small that nothing but the second order is left: some matrices, `scales` times a fixed direction."""

    decoder: Decoder
    sources: dict[str, ModelTensor]
    chosen: tuple[str, ...]
    scales: tuple[float, ...] = (0.02, -0.02, 0.04)

    def names(self, layer: int) -> Sequence[str]:
        wanted = None if layer == self.decoder.layers else layer
        return [name for name in self.chosen if self.sources[name].layer == wanted]

    def count(self, name: str) -> int:
        del name
        return len(self.scales)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        source = self.sources[name]
        generator = torch.Generator().manual_seed(len(name))
        whole = torch.randn((source.rows, source.columns), generator=generator)
        return torch.stack([scale * whole[start:stop] * 0.25 for scale in self.scales])


def measured(case: Case, changes: Small, name: str, which: int) -> float:
    """The divergence with one matrix changed."""
    sides = SideBySide(case.decoder, case.ids)
    change = changes.read(name, 0, changes.sources[name].rows)[which]
    table = torch.from_numpy(changes.sources["token_embd.weight"].read(0, case.decoder.vocabulary))
    changed = table + change if name == "token_embd.weight" else table

    def head(start: int, stop: int) -> Tensor:
        source = changes.sources[case.decoder.matrix]
        rows = torch.from_numpy(source.read(start, stop))
        return rows + change[start:stop] if name == case.decoder.matrix else rows

    with torch.no_grad():
        sides.begin({"changed": lambda ids: changed[ids]})
        for layer in range(case.decoder.layers):
            block = case.decoder.block(layer)
            weights = {name: block.weights[name] + change} if name in block.weights else {}
            sides.through(block, {"changed": weights})
        found = sides.divergences({"changed": head})["changed"]
    assert FULL in sides.states
    return float(found.kl.mean())


@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_is_the_divergence_of_small_changes(case: Callable[..., Case], tied: bool) -> None:
    made = case(tied=tied)
    sources = {tensor.name: tensor for tensor in made.model.tensors}
    chosen = ["token_embd.weight", "blk.0.attn_k.weight", "blk.1.ffn_down.weight", "blk.0.ffn_gate.weight"]
    changes = Small(made.decoder, sources, tuple(chosen if tied else [*chosen, "output.weight"]))
    found = project(made.decoder, made.ids, changes, seed=1)
    assert set(found) == set(changes.chosen)
    for name, projections in found.items():
        assert projections.shape == (len(made.ids), 3)
        np.testing.assert_allclose(projections[:, 1], -projections[:, 0], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(projections[:, 2], 2 * projections[:, 0], rtol=1e-3, atol=1e-6)
        # 160 draws: the mean square is good to √(2/160), 11 %.
        estimate = float(np.square(projections[:, 0], dtype=np.float64).mean())
        assert estimate == pytest.approx(measured(made, changes, name, 0), rel=0.25)


def test_slices_and_batches_change_only_the_draw_of_the_head(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = case()
    sources = {tensor.name: tensor for tensor in made.model.tensors}
    changes = Small(made.decoder, sources, ("token_embd.weight", "blk.1.attn_q.weight", "output.weight"))
    whole = project(made.decoder, made.ids[:24], changes, seed=1)
    monkeypatch.setattr("tersor.analyse.projections.GRADIENT_BYTES", 1)
    alone = project(made.decoder, made.ids[:24], changes, seed=1)
    for name, projections in whole.items():
        np.testing.assert_allclose(alone[name], projections, rtol=1e-3, atol=1e-6)
    monkeypatch.setattr("tersor.analyse.projections.CHANGE_BYTES", 4 * 3 * 64 * 100)
    sliced = project(made.decoder, made.ids, changes, seed=1)
    for name, projections in project(made.decoder, made.ids, changes, seed=2).items():
        ours, other = (float(np.square(p[:, 0], dtype=np.float64).mean()) for p in (sliced[name], projections))
        assert ours == pytest.approx(other, rel=0.6)


@pytest.mark.parametrize("rows", [1, 10, 40])
def test_blocks_that_are_too_large_are_gone_through_in_parts(
    rows: int, case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = case()
    sources = {tensor.name: tensor for tensor in made.model.tensors}
    chosen = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_down.weight", "blk.1.ffn_gate.weight")
    read: list[int] = []

    class Watched(Small):
        def read(self, name: str, start: int, stop: int) -> Tensor:
            read.append(4 * (stop - start) * self.sources[name].columns * len(self.scales))
            return super().read(name, start, stop)

    changes = Watched(made.decoder, sources, chosen)
    whole = project(made.decoder, made.ids[:8], changes, seed=1)
    assert len(read) == 4
    most = 4 * rows * max(sources[name].columns for name in chosen) * 3
    monkeypatch.setattr("tersor.analyse.projections.CHANGES_AT_ONCE", most)
    read.clear()
    parts = project(made.decoder, made.ids[:8], changes, seed=1, spill=tmp_path)
    assert max(read) <= most
    assert len(read) > 4
    for name, projections in whole.items():
        np.testing.assert_allclose(parts[name], projections, rtol=1e-3, atol=1e-6)
    held, states = held_bytes(made.decoder, 8, made.ids.shape[1], 3)
    assert states == 4 * (made.decoder.layers + 2) * 8 * made.ids.shape[1] * made.decoder.hidden
    assert most < held
