"""Mixes of formats, put together from candidates and run: what they really diverge on sequences of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tersor.analyse.side_by_side import Divergence, Embed, Rows, SideBySide
from tersor.analyse.survey import Surveyed
from tersor.decoder import Decoder
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["measure_mixes"]

EMBEDDING = "token_embd.weight"


def measure_mixes(
    decoder: Decoder,
    surveyed: Surveyed,
    ids: npt.NDArray[np.int64],
    mixes: Mapping[str, Mapping[str, str]],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Divergence]:
    """Return how far each mix is from full precision on `ids`, int64 [sequences, tokens].

    mixes     name → tensor → format, one of its candidates; tensors that are not named stay as they are
    progress  called with (what is done, blocks done, blocks)
    """
    with torch.no_grad():
        sides = SideBySide(decoder, ids)
        sides.begin({name: _embedder(decoder, surveyed, mix) for name, mix in mixes.items()})
        for layer in range(decoder.layers):
            if progress is not None:
                progress("measuring mixes", layer, decoder.layers)
            block = decoder.block(layer)
            names = surveyed.names(layer)
            weights = {
                side: {
                    name: surveyed.values(name, mix[name]).reshape(block.weights[name].shape)
                    for name in names
                    if name in mix
                }
                for side, mix in mixes.items()
            }
            sides.through(block, weights)
        return sides.divergences({name: _head(surveyed, decoder.matrix, mix) for name, mix in mixes.items()})


def _embedder(decoder: Decoder, surveyed: Surveyed, mix: Mapping[str, str]) -> Embed | None:
    if EMBEDDING not in mix:
        return None

    def embed(ids: Tensor) -> Tensor:
        wanted, places = torch.unique(ids, return_inverse=True)
        rows = surveyed.picked(EMBEDDING, mix[EMBEDDING], wanted.numpy()) * decoder.embedding_scale
        return rows[places]

    return embed


def _head(surveyed: Surveyed, matrix: str, mix: Mapping[str, str]) -> Rows | None:
    if matrix not in mix:
        return None

    def rows(start: int, stop: int) -> Tensor:
        return surveyed.values(matrix, mix[matrix], start, stop)

    return rows
