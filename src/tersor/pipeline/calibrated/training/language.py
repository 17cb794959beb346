"""A language model held whole, twice over: in full precision, and with weights that are trained in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tersor.decoder import Block, Decoder
from tersor.formats import get
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.trainable import TrainableMatrix
from tersor.pipeline.calibrated.run import Prepared
from tersor.pipeline.calibrated.training.part import Trained
from tersor.pipeline.calibrated.visitor import PLAIN

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["TABLE", "Language"]

TABLE, LAST_NORM = "token_embd.weight", "output_norm.weight"


class Language:
    """All weights of a model in memory, and where training begins: what a post-training method made of them.

    parts   what is trained of each block, and behind them of the output matrix
    fixed   other weights that are not the model's own any more, by GGUF name
    """

    def __init__(self, prepared: Prepared, *, trains_vectors: bool) -> None:
        visitor = prepared.visitor
        self.decoder: Decoder = visitor.decoder
        self.device = str(visitor.ranks.device)
        self.blocks: tuple[Block, ...] = tuple(self.decoder.block(layer) for layer in range(self.decoder.layers))
        self.head = self.decoder.head()
        self.fixed: dict[str, Tensor] = {}
        self._ends = dict(self.head.weights)
        ids = torch.arange(self.decoder.vocabulary)[None]
        self.table = self.decoder.embed(ids)[0]
        self.rounded_table = self._rounded_table(prepared)
        of_parts = [{**block.weights} for block in self.blocks] + [self._ends]
        self.parts = [
            self._start(prepared, layer, weights, trains_vectors=trains_vectors)
            for layer, weights in enumerate(of_parts)
        ]

    def _start(self, prepared: Prepared, layer: int, own: Mapping[str, Tensor], *, trains_vectors: bool) -> Trained:
        made, is_rewritten = prepared.finished(layer).tensors, bool(prepared.visitor.rewrites)
        matrices: dict[str, TrainableMatrix] = {}
        vectors: dict[str, Tensor] = {}
        for name, tensor in made.items():
            if tensor.format.name in PLAIN:
                self.fixed[name] = torch.from_numpy(tensor.dequantize()).to(self.device)
            else:
                data = torch.from_numpy(tensor.data).to(self.device)
                near = None if is_rewritten else own[name].reshape(len(data), -1)
                matrices[name] = TrainableMatrix.of(tensor.format, data, tensor.shape[-1], near)
        for name, weight in own.items():
            if trains_vectors and weight.ndim == 1 and prepared.visitor.plan[name].format == "f32":
                vectors[name] = self.fixed.pop(name, weight)
        return Trained(matrices, vectors, {name: tensor.shape for name, tensor in made.items()})

    def _rounded_table(self, prepared: Prepared) -> Tensor:
        """Return the embeddings as the file will have them, where the table is not the output matrix too."""
        planned = prepared.visitor.plan[TABLE]
        if planned.format in PLAIN or self.decoder.matrix == TABLE:
            return self.table
        source, kind = prepared.visitor.sources[TABLE], get(planned.format)
        values = kind.decode(kind.encode(source.read(0, source.rows)), source.columns)
        return (torch.from_numpy(values) * self.decoder.embedding_scale).to(self.device)

    def embedded(self, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Return the embeddings [batch, tokens, hidden] behind the quantized table."""
        table = self.rounded_table
        if TABLE in weights:
            table = weights[TABLE] * self.decoder.embedding_scale
        return torch.nn.functional.embedding(ids.to(self.device), table)

    def embedded_in_full(self, ids: Tensor) -> Tensor:
        """Return those of the model in full precision."""
        return torch.nn.functional.embedding(ids.to(self.device), self.table)

    def through_block(self, layer: int, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Return what a block with `weights` in place of its own makes of hidden states."""
        block = self.blocks[layer].twin()
        block.weights.update({name: weights[name] for name in block.weights if name in weights})
        return block.traced(hidden)

    def logits(self, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Return [batch, tokens, vocabulary] of the quantized model, `weights` the trained ones."""
        weights = {**self.fixed, **weights}
        hidden = self.embedded(weights, ids)
        for layer in range(len(self.blocks)):
            hidden = self.through_block(layer, weights, hidden)
        return self._ended(weights, hidden)

    def full_logits(self, _weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Return those of the model in full precision."""
        return self.ended_in_full(self.full_states(ids))

    def full_states(self, ids: Tensor) -> Tensor:
        """Return its states [batch, tokens, hidden] behind the last block."""
        hidden = self.embedded_in_full(ids)
        for block in self.blocks:
            hidden = block.forward(hidden)
        return hidden

    def ended_in_full(self, hidden: Tensor) -> Tensor:
        """Return what the end of the model in full precision makes of the states behind the last block."""
        return self._ended({}, hidden)

    def ends(self, weights: Mapping[str, Tensor], states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of states behind the last block, and the embeddings of ids."""
        return self._ended(weights, states), self.embedded(weights, ids)

    def _ended(self, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        self.head.weights.update({name: weights.get(name, own) for name, own in self._ends.items()})
        return self.head.traced(hidden)
