"""One block: attention and feed-forward over the weights that it holds, in GGUF names and layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tersor.decoder.attention import attend
from tersor.decoder.experts import feed_experts
from tersor.decoder.rope import Rope
from tersor.decoder.settings import Settings
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Block", "Observer", "Onlooker", "activate", "normed"]

Observer: TypeAlias = "Callable[[tuple[str, ...], Tensor, int | None], None]"
"""Takes the GGUF names of the weight matrices that share an input, the input [n, columns], and the number of the expert
or None. The input is lent for the call: copy it to keep it, do not write to it."""

Onlooker: TypeAlias = "Callable[[str, Tensor], None]"
"""Takes the GGUF name of a matrix whose outputs are added to the residual stream as they are, and that stream before,
[batch, tokens, hidden]; lent for the call."""


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / rms(x) · weight over the last axis."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def activate(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return activation(gate) · up, "silu" or "gelu" (tanh form); both may be overwritten."""
    if activation == "silu":
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)
    return torch.nn.functional.gelu(gate, approximate="tanh").mul_(up)


class Block:
    """A block of the decoder.

    layer    its number
    weights  GGUF name → float32 tensor in GGUF layout, norms and biases included; stacked experts are
             [experts, rows, columns]. The caller may put others in their place, of the same shape, between forwards.
    """

    def __init__(self, layer: int, weights: dict[str, Tensor], settings: Settings, rope: Rope) -> None:
        self.layer, self.weights = layer, weights
        self._settings, self._rope = settings, rope

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    def forward(self, hidden: Tensor, observe: Observer | None = None, residual: Onlooker | None = None) -> Tensor:
        """Return the output [batch, tokens, hidden] for texts that begin at position 0; `hidden` is not modified.

        observe   called once for each distinct input of weight matrices; for each expert with its own tokens, none too
        residual  called before each of the two additions to the residual stream that no norm follows
        """
        with torch.no_grad():
            self._show(residual, "attn_output", hidden, "post_attention_norm")
            attended = self._attention(self._normed(hidden, "attn_norm"), observe)
            hidden = self._after(attended, "post_attention_norm").add_(hidden)
            self._show(residual, "ffn_down", hidden, "post_ffw_norm")
            made = self._feed_forward(self._normed(hidden, "ffn_norm"), observe)
            return self._after(made, "post_ffw_norm").add_(hidden)

    def _show(self, residual: Onlooker | None, stem: str, hidden: Tensor, norm: str) -> None:
        if residual is not None and self._has(stem) and not self._has(norm):
            residual(self._name(stem), hidden)

    def _name(self, stem: str, suffix: str = "weight") -> str:
        return f"blk.{self.layer}.{stem}.{suffix}"

    def _has(self, stem: str) -> bool:
        return self._name(stem) in self.weights

    def _normed(self, x: Tensor, stem: str) -> Tensor:
        return normed(x, self.weights[self._name(stem)], self._settings.epsilon)

    def _after(self, x: Tensor, stem: str) -> Tensor:
        """Return x normed, where the model has a norm there."""
        return self._normed(x, stem) if self._has(stem) else x

    def _project(self, x: Tensor, stems: tuple[str, ...], observe: Observer | None) -> list[Tensor]:
        """Return x times each of the matrices, plus biases where there are any."""
        names = tuple(self._name(stem) for stem in stems)
        if observe is not None:
            observe(names, x.flatten(0, -2), None)
        linear = torch.nn.functional.linear
        biases = (self.weights.get(self._name(stem, "bias")) for stem in stems)
        return [linear(x, self.weights[name], bias) for name, bias in zip(names, biases, strict=True)]

    def _attention(self, x: Tensor, observe: Observer | None) -> Tensor:
        settings, axes, window = self._settings, self._settings.axes, self._settings.windows[self.layer]
        if self._has("attn_qkv"):
            fused = self._project(x, ("attn_qkv",), observe)[0]
            parts = torch.split(fused, [axes["query"], axes["key"], axes["key"]], dim=-1)
        else:
            parts = tuple(self._project(x, ("attn_q", "attn_k", "attn_v"), observe))
        query, key, value = (part.view(*x.shape[:-1], -1, settings.head) for part in parts)
        if self._has("attn_q_norm"):
            query, key = self._normed(query, "attn_q_norm"), self._normed(key, "attn_k_norm")
        query, key = (self._rope.turn(part, is_local=window is not None) for part in (query, key))
        mixed = attend(query, key, value, scale=settings.scale, cap=settings.score_cap, window=window)
        return self._project(mixed, ("attn_output",), observe)[0]

    def _feed_forward(self, x: Tensor, observe: Observer | None) -> Tensor:
        activation = self._settings.family.activation
        if self._has("ffn_gate_inp"):
            tokens = x.flatten(0, -2)
            logits = torch.nn.functional.linear(tokens, self.weights[self._name("ffn_gate_inp")])
            made = feed_experts(tokens, logits, self._settings.experts_used, lambda x, e: self._expert(x, e, observe))
            return made.view_as(x)
        if self._has("ffn_gate"):
            gate, up = self._project(x, ("ffn_gate", "ffn_up"), observe)
        else:  # stored as one, the gate first
            gate, up = self._project(x, ("ffn_up",), observe)[0].chunk(2, dim=-1)
        return self._project(activate(gate, up, activation), ("ffn_down",), observe)[0]

    def _expert(self, x: Tensor, expert: int, observe: Observer | None) -> Tensor:
        names = tuple(self._name(stem) for stem in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"))
        gate, up, down = (self.weights[name][expert] for name in names)
        if observe is not None:
            observe(names[:2], x, expert)
        inner = activate(x @ gate.T, x @ up.T, self._settings.family.activation)
        if observe is not None:
            observe(names[2:], inner, expert)
        return inner @ down.T
