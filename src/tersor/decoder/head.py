"""What follows the last block: the final norm and the output matrix, or some rows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.decoder.block import Observer, Seen, normed
from tersor.decoder.settings import Settings
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Head"]


class Head:
    """The end of the decoder.

    weights  GGUF name → float32 tensor: "output_norm.weight" and `matrix`; the caller may put others in their place
    matrix   "output.weight", or "token_embd.weight" where the two are one
    """

    def __init__(self, weights: dict[str, Tensor], matrix: str, settings: Settings) -> None:
        self.weights, self.matrix = weights, matrix
        self._settings = settings

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    def inputs(self, hidden: Tensor) -> Seen:
        """Return what the matrix would see."""
        return Seen((self.matrix,), self._normed(hidden).flatten(0, -2), 0)

    def _normed(self, hidden: Tensor) -> Tensor:
        return normed(hidden, self.weights["output_norm.weight"], self._settings.epsilon)

    def forward(self, hidden: Tensor, observe: Observer | None = None) -> Tensor:
        """Return the logits [batch, tokens, rows of the matrix], soft cap included; `hidden` is not modified."""
        with torch.no_grad():
            return self.traced(hidden, observe)

    def traced(self, hidden: Tensor, observe: Observer | None = None) -> Tensor:
        """Return what `forward` does, with gradients of what in `hidden` and the weights requires them."""
        x = self._normed(hidden)
        if observe is not None:
            observe((self.matrix,), x.flatten(0, -2), None)
        logits = torch.nn.functional.linear(x, self.weights[self.matrix])
        cap = self._settings.logit_cap
        if cap is None:
            return logits
        return (logits / cap).tanh() * cap if logits.requires_grad else logits.div_(cap).tanh_().mul_(cap)
