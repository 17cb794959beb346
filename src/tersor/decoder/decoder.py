"""The forward pass of a Model, a block at a time: embeddings, blocks, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tersor.core.errors import ShapeError
from tersor.decoder.block import Block, Observer
from tersor.decoder.head import Head
from tersor.decoder.rope import Rope
from tersor.decoder.settings import read_settings
from tersor.decoder.weights import FACTORS, checked_tensors, read
from tersor.kernels.lazy import LazyModule
from tersor.models.model import Model, ModelTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Decoder"]

_GAP, _RUN = 64, 4096
"""Rows of the embeddings are read in runs: over gaps shorter than _GAP, of _RUN rows at most."""


class Decoder:
    """A model's forward pass in GGUF semantics, float32 throughout.

    It keeps no weights but rope factors: what `block` and `head` return holds what was read, and dropping it frees it.
    A model whose rope has long and short factors takes the long ones for texts longer than its original context.

    model   from a checkpoint or a GGUF; quantized tensors are decoded when they are read
    device  of torch, where weights and activations live
    layers, hidden, vocabulary  blocks, elements of a token, rows of the output matrix

    Raises UnsupportedError, ShapeError or FormatError when metadata and tensors are not what a table row covers.
    """

    def __init__(self, model: Model, *, device: str = "cpu") -> None:
        self._settings = settings = read_settings(model)
        self._tensors = checked_tensors(model, settings)
        self._device = device
        self._blocks: list[list[ModelTensor]] = [[] for _ in range(settings.layers)]
        for tensor in self._tensors.values():
            if tensor.layer is not None:
                self._blocks[tensor.layer].append(tensor)
        factors = {stem: self._tensors[f"{stem}.weight"] for stem in FACTORS if f"{stem}.weight" in self._tensors}
        held = {stem: read(tensor, "cpu") for stem, tensor in factors.items()}
        self._rope = Rope(settings.rope, held, settings.family.pairs, device)
        self.layers, self.hidden = settings.layers, settings.axes["hidden"]
        self.vocabulary = settings.axes["vocabulary"]
        self.matrix = "output.weight" if "output.weight" in self._tensors else "token_embd.weight"

    @property
    def embedding_scale(self) -> float:
        """What the rows of the table are multiplied with."""
        return float(self.hidden**0.5) if self._settings.family.scales_embeddings else 1.0

    @property
    def logit_cap(self) -> float | None:
        """The soft cap of the logits, None where there is none."""
        return self._settings.logit_cap

    def embed(self, ids: Tensor) -> Tensor:
        """Return [batch, tokens, hidden] for token ids [batch, tokens]; only rows near those asked for are read."""
        wanted, places = np.unique(ids.cpu().numpy(), return_inverse=True)
        if (
            wanted.dtype.kind != "i"
            or ids.ndim != 2
            or (len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.vocabulary)
        ):
            raise ShapeError(
                f"ids must be [batch, tokens] of 0 to {self.vocabulary - 1}, got {tuple(ids.shape)} {wanted}"
            )
        table, rows = self._tensors["token_embd.weight"], np.empty((len(wanted), self.hidden), dtype=np.float32)
        for run in _runs(wanted):
            first = int(wanted[run.start])
            rows[run] = table.read(first, int(wanted[run.stop - 1]) + 1)[wanted[run] - first]
        if self.embedding_scale != 1:
            rows *= np.float32(self.embedding_scale)
        return torch.from_numpy(rows[places.reshape(ids.shape)]).to(self._device)

    def block(self, layer: int) -> Block:
        """Read a block's weights and return it."""
        weights = {tensor.name: read(tensor, self._device) for tensor in self._tensors_of(layer)}
        return Block(layer, weights, self._settings, self._rope)

    def block_nbytes(self, layer: int) -> int:
        """Return the bytes that `block(layer)` will hold, without reading it."""
        return sum(4 * tensor.rows * tensor.columns for tensor in self._tensors_of(layer))

    def head(self, start: int = 0, stop: int | None = None) -> Head:
        """Read the final norm and rows `start` to `stop` of the output matrix: what computes their logits."""
        matrix = read(self._tensors[self.matrix], self._device, start, self.vocabulary if stop is None else stop)
        weights = {"output_norm.weight": read(self._tensors["output_norm.weight"], self._device), self.matrix: matrix}
        return Head(weights, self.matrix, self._settings)

    def logits(self, hidden: Tensor, observe: Observer | None = None, *, slice_rows: int | None = None) -> Tensor:
        """Return [batch, tokens, vocabulary] from the last block's output.

        slice_rows  rows of the output matrix in memory at a time; None: all
        """
        if slice_rows is None or slice_rows >= self.vocabulary:
            return self.head().forward(hidden, observe)
        if slice_rows < 1:
            raise ShapeError(f"slice_rows must be 1 or more, got {slice_rows}")
        made = torch.empty((*hidden.shape[:-1], self.vocabulary), dtype=torch.float32, device=hidden.device)
        for start in range(0, self.vocabulary, slice_rows):
            stop = min(start + slice_rows, self.vocabulary)
            made[..., start:stop] = self.head(start, stop).forward(hidden, None if start else observe)
        return made

    def _tensors_of(self, layer: int) -> list[ModelTensor]:
        if not 0 <= layer < self.layers:
            raise ShapeError(f"block {layer} asked for; the model has {self.layers}")
        return self._blocks[layer]


def _runs(ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[slice]:
    """Split ascending ids into stretches that are worth reading whole.

    >>> _runs(np.array([1, 3, 200, 201]))
    [slice(0, 2, None), slice(2, 4, None)]
    """
    runs, start = [], 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] - ids[place - 1] >= _GAP or ids[place] - ids[start] >= _RUN:
            runs.append(slice(start, place))
            start = place
    return runs
