"""One block: attention and feed-forward over the weights that it holds, in GGUF names and layout."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tersor.decoder.attention import attend
from tersor.decoder.experts import route
from tersor.decoder.rope import Rope
from tersor.decoder.settings import Settings
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Block", "Half", "Observer", "Seen", "activate", "normed"]

Observer: TypeAlias = "Callable[[tuple[str, ...], Tensor, int | None], None]"
"""Takes the GGUF names of the weight matrices that share an input, the input [n, columns], and the number of the expert
or None. The input is lent for the call: copy it to keep it, do not write to it."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What matrices are about to be multiplied with. All tensors are lent: no longer valid once the block goes on.

    names   the GGUF names of the matrices that share the input
    values  the input, [n, columns]
    step    0 for the first matrices of a half of the block, 1 for those that need what the first have made
    expert  which of the stacked matrices; None where they are not stacked
    stream  the residual stream [n, hidden] that the output will be added to as it is; None where a norm follows, or
            another matrix
    """

    names: tuple[str, ...]
    values: Tensor
    step: int
    expert: int | None = None
    stream: Tensor | None = None


Half: TypeAlias = "Callable[[Tensor], Generator[Seen, None, Tensor]]"
"""Half a block: from hidden states [batch, tokens, hidden] (not modified) to those after it, showing every input just
before it is used; the weights are looked up afterwards. Closing it early costs nothing."""


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / rms(x) · weight over the last axis, in the weight's type: not that of products before it."""
    return torch.nn.functional.rms_norm(x.to(weight.dtype), weight.shape, weight, epsilon)


def activate(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return activation(gate) · up, "silu" or "gelu" (tanh form); both may be overwritten where no gradient is kept."""
    if gate.requires_grad or up.requires_grad:
        made = torch.nn.functional.silu(gate) if activation == "silu" else _gelu(gate)
        return made * up
    if activation == "silu":
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)
    return _gelu(gate).mul_(up)


def _gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


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

    @property
    def halves(self) -> tuple[Half, Half]:
        """The two parts that add to the residual stream, in their order."""
        return self.attention, self.feed_forward

    def twin(self) -> Block:
        """Return a block of the same weights, in which others may be put without a trace in this one."""
        return Block(self.layer, dict(self.weights), self._settings, self._rope)

    def forward(self, hidden: Tensor, observe: Observer | None = None) -> Tensor:
        """Return the output [batch, tokens, hidden] for texts that begin at position 0; `hidden` is not modified.

        observe   called once for each distinct input of weight matrices; for each expert with its own tokens, none too
        """
        with torch.no_grad():
            return self.traced(hidden, observe)

    def traced(self, hidden: Tensor, observe: Observer | None = None) -> Tensor:
        """Return what `forward` does, with gradients of what in `hidden` and the weights requires them."""
        for half in self.halves:
            hidden = _drained(half(hidden), observe)
        return hidden

    def attention(self, hidden: Tensor) -> Generator[Seen, None, Tensor]:
        """Mix the tokens; see Half."""
        made = yield from self._attention(self._normed(hidden, "attn_norm"), hidden)
        return _added(self._after(made, "post_attention_norm"), hidden)

    def feed_forward(self, hidden: Tensor) -> Generator[Seen, None, Tensor]:
        """Feed every token through the wide layer, or through its experts; see Half."""
        x = self._normed(hidden, "ffn_norm")
        if self._has("ffn_gate_inp"):
            made = yield from self._experts(x)
        else:
            made = yield from self._dense(x, hidden)
        return _added(self._after(made, "post_ffw_norm"), hidden)

    def _name(self, stem: str, suffix: str = "weight") -> str:
        return f"blk.{self.layer}.{stem}.{suffix}"

    def _has(self, stem: str) -> bool:
        return self._name(stem) in self.weights

    def _normed(self, x: Tensor, stem: str) -> Tensor:
        return normed(x, self.weights[self._name(stem)], self._settings.epsilon)

    def _after(self, x: Tensor, stem: str) -> Tensor:
        """Return x normed, where the model has a norm there."""
        return self._normed(x, stem) if self._has(stem) else x

    def _project(
        self, x: Tensor, stems: tuple[str, ...], step: int, stream: Tensor | None = None
    ) -> Generator[Seen, None, list[Tensor]]:
        """Return x times each of the matrices, plus biases where there are any."""
        names = tuple(self._name(stem) for stem in stems)
        yield Seen(names, x.flatten(0, -2), step, stream=None if stream is None else stream.flatten(0, -2))
        linear = torch.nn.functional.linear
        biases = (self.weights.get(self._name(stem, "bias")) for stem in stems)
        return [linear(x, self.weights[name], bias) for name, bias in zip(names, biases, strict=True)]

    def _attention(self, x: Tensor, hidden: Tensor) -> Generator[Seen, None, Tensor]:
        settings, axes, window = self._settings, self._settings.axes, self._settings.windows[self.layer]
        if self._has("attn_qkv"):
            (fused,) = yield from self._project(x, ("attn_qkv",), 0)
            parts = torch.split(fused, [axes["query"], axes["key"], axes["key"]], dim=-1)
        else:
            parts = tuple((yield from self._project(x, ("attn_q", "attn_k", "attn_v"), 0)))
        query, key, value = (part.view(*x.shape[:-1], -1, settings.head) for part in parts)
        if self._has("attn_q_norm"):
            query, key = self._normed(query, "attn_q_norm"), self._normed(key, "attn_k_norm")
        query, key = (self._rope.turn(part, is_local=window is not None) for part in (query, key))
        mixed = attend(query, key, value, scale=settings.scale, cap=settings.score_cap, window=window)
        stream = None if self._has("post_attention_norm") else hidden
        (made,) = yield from self._project(mixed, ("attn_output",), 1, stream)
        return made

    def _dense(self, x: Tensor, hidden: Tensor) -> Generator[Seen, None, Tensor]:
        if self._has("ffn_gate"):
            gate, up = yield from self._project(x, ("ffn_gate", "ffn_up"), 0)
        else:  # stored as one, the gate first
            (fused,) = yield from self._project(x, ("ffn_up",), 0)
            gate, up = fused.chunk(2, dim=-1)
        inner = activate(gate, up, self._settings.family.activation)
        stream = None if self._has("post_ffw_norm") else hidden
        (made,) = yield from self._project(inner, ("ffn_down",), 1, stream)
        return made

    def _experts(self, x: Tensor) -> Generator[Seen, None, Tensor]:
        """For each token the weighted sum of what its experts make of it."""
        tokens = x.flatten(0, -2)
        router = self.weights[self._name("ffn_gate_inp")]
        with torch.autocast(tokens.device.type, enabled=False):  # who is chosen hangs on the last bits
            logits = torch.nn.functional.linear(tokens.to(router.dtype), router)
        made = torch.zeros_like(tokens)
        for share in route(logits, self._settings.experts_used):
            fed = yield from self._expert(tokens[share.tokens], share.expert)
            made.index_add_(0, share.tokens, (fed * share.weights).to(made.dtype))
        return made.view_as(x)

    def _expert(self, x: Tensor, expert: int) -> Generator[Seen, None, Tensor]:
        names = tuple(self._name(stem) for stem in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"))
        yield Seen(names[:2], x, 0, expert)
        gate, up, down = (self.weights[name][expert] for name in names)
        inner = activate(x @ gate.T, x @ up.T, self._settings.family.activation)
        yield Seen(names[2:], inner, 1, expert)
        return inner @ down.T


def _added(made: Tensor, hidden: Tensor) -> Tensor:
    """Return the sum, in place where both are of a kind: what products in bfloat16 made is added up in float32."""
    return made.add_(hidden) if made.dtype == hidden.dtype else made + hidden


def _drained(walk: Generator[Seen, None, Tensor], observe: Observer | None) -> Tensor:
    """Return what `walk` comes to, telling `observe` what it shows."""
    while True:
        try:
            seen = next(walk)
        except StopIteration as end:
            made: Tensor = end.value
            return made
        if observe is not None:
            observe(seen.names, seen.values, seen.expert)
