"""Layers that are given the same tensor multiply it in one go: queries, keys and values; a gate and what it gates.

For one token a matrix of a few hundred rows is over before all threads have begun, and its input is rounded anew for
each. Their rows do not know of one another, so that not a bit changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.arena import Arena
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.weights import PackedWeight
from tersor.kernels.reference.linear import BLOCK, Digits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Joint", "can_watch", "joined"]


@dataclass(eq=False)
class Joint:
    """The rows of several layers as one matrix.

    spans  first row and the one behind the last, of every layer in the order in which they are called
    order  as the layers have it
    """

    weight: PackedWeight
    bias: Tensor | None
    order: Tensor | None
    digits: Digits
    per_token: bool
    spans: tuple[tuple[int, int], ...]
    _last: tuple[Tensor, int | Tensor, Tensor] | None = field(default=None, init=False)

    def part(self, seat: int, x: Tensor) -> Tensor:
        """Return what layer number `seat` makes of the one token `x`; all others' are made with the first one's."""
        last = self._last  # read once: another thread may put its own there
        if last is None or last[0] is not x or not _is_as_it_was(x, last[1]):
            mark = _mark(x)
            given = x if self.order is None else x.index_select(-1, self.order)
            last = x, mark, multiply(given, self.weight, self.bias, self.digits, self.per_token)
            self._last = last
        if seat == len(self.spans) - 1:
            self._last = None
        start, stop = self.spans[seat]
        return last[2][..., start:stop]


def joined(
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    orders: Sequence[Tensor | None],
    *,
    digits: Digits,
    per_token: bool,
    arena: Arena,
) -> tuple[Joint, list[PackedWeight]] | None:
    """Return the layers as one matrix, and their own weights as parts of it; None where they do not go together."""
    first = weights[0]
    kinds = {(one.columns, one.groups, one.bits, one.real, one.zeros is None) for one in weights}
    if len(kinds) > 1 or any(one.rows % BLOCK for one in weights[:-1]):
        return None
    if len({bias is None for bias in biases}) > 1 or not all(_is_same(orders[0], order) for order in orders):
        return None
    codes, scales = (arena.keep(torch.cat([getattr(one, name) for one in weights])) for name in ("codes", "scales"))
    zeros = arena.keep(torch.cat([_there(one.zeros) for one in weights])) if first.zeros is not None else None
    bias = torch.cat([_there(bias) for bias in biases]).to(torch.float32) if biases[0] is not None else None
    whole = PackedWeight(sum(one.rows for one in weights), first.bits, codes, scales, first.real, zeros)
    blocks = pairwise(accumulate((len(one.codes) for one in weights), initial=0))
    parts = [
        PackedWeight(one.rows, one.bits, codes[a:b], scales[a:b], one.real, None if zeros is None else zeros[a:b])
        for one, (a, b) in zip(weights, blocks, strict=True)
    ]
    spans = tuple(pairwise(accumulate((one.rows for one in weights), initial=0)))
    return Joint(whole, bias, orders[0], digits, per_token, spans), parts


def can_watch(x: Tensor) -> bool:
    """Tell whether changes of the one token `x` are seen for less than a joint product saves.

    Torch counts them, but not in inference mode: there a copy is kept. Of 4096 numbers in bfloat16 it took 5.5 µs, each
    look at it 5 (one thread of a Xeon). That is for saving a start of all threads; one thread alone gains nothing.
    """
    if not x.is_inference():
        return True
    return torch.get_num_threads() > 1 and x.is_contiguous() and x.storage_offset() * x.itemsize % 8 == 0


def _mark(x: Tensor) -> int | Tensor:
    """Return what tells later whether `x` was changed in place."""
    return _bits(x).clone() if x.is_inference() else x._version


def _is_as_it_was(x: Tensor, mark: int | Tensor) -> bool:
    return x._version == mark if isinstance(mark, int) else torch.equal(_bits(x), mark)


def _bits(x: Tensor) -> Tensor:
    """Its numbers, eight bytes at a time: so they are compared several times as fast, and to the last bit."""
    return x.view(-1).view(torch.int64)


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _there(tensor: Tensor | None) -> Any:
    assert tensor is not None
    return tensor
