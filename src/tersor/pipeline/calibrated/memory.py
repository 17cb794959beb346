"""How much memory a calibrated run will need at its peak, told before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

from tersor.calibrate.stream import PAIRED, Needs
from tersor.core.errors import MissingError
from tersor.core.quantities import size
from tersor.decoder import Decoder
from tersor.models.model import Model
from tersor.targets.memory import available_bytes

__all__ = ["MemoryPlan", "plan_memory"]

PROGRAM = 600 << 20
"""Python, torch and their buffers."""
HEAP = 1.1
"""Memory of the process for each byte in use: what is freed is not all given back (3 B parameters: 1.09)."""
SPILL_SHARE = 0.25
"""Hidden states beyond this share of the free memory go to a file."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the peak.

    block        weights of the largest block, float32, own and rounded
    statistics   sums of its inputs, float64, and the float32 Hessian and factor of the widest one
    hidden       hidden states of all sequences of this rank, and for methods that correct a second time of most
    forward      what a forward pass of one chunk holds
    spilled      whether the hidden states lie in a file instead
    outside      what is held of matrices outside the blocks, where they are taken whole
    """

    block: int
    statistics: int
    hidden: int
    forward: int
    spilled: bool
    available: int | None
    outside: int = 0

    @property
    def total(self) -> int:
        """Largest resident size to expect."""
        held = self.block + self.statistics + self.forward + self.outside + (0 if self.spilled else self.hidden)
        return PROGRAM + ceil(HEAP * held)

    def described(self) -> str:
        """One line: the peak and its parts."""
        parts = {"block": self.block, "sums": self.statistics, "forward": self.forward}
        if self.outside:
            parts["embeddings and output"] = self.outside
        if not self.spilled:
            parts["hidden states"] = self.hidden
        named = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in parts.items())
        spilled = f"; {size(self.hidden)} of hidden states in a file" if self.spilled else ""
        more = f"{HEAP - 1:.0%} that the allocator keeps"
        return f"planned peak memory {size(self.total)}: program {size(PROGRAM)}, {named}, {more}{spilled}"

    def check(self, tell: Callable[[str], None] | None = None) -> None:
        """Refuse what does not fit: MissingError says what to change; what fits is told."""
        if self.available is not None and self.total > self.available:
            gib = 2**30
            raise MissingError(
                f"the run needs {self.total / gib:.1f} GiB (block {self.block / gib:.1f}, statistics "
                f"{self.statistics / gib:.1f}, forward {self.forward / gib:.1f}, outside the blocks "
                f"{self.outside / gib:.1f}), {self.available / gib:.1f} are free; "
                "shorter calibration sequences or a smaller --calibration-chunk need less, --method rtn nearly none"
            )
        if tell is not None:
            tell(self.described())


def plan_memory(
    model: Model,
    decoder: Decoder,
    needs: Needs,
    chunk: int,
    *,
    sequences: int,
    length: int,
    spill: bool | None,
    stepwise: bool = True,
) -> MemoryPlan:
    """Work out the peak of a run over `sequences` of `length` tokens, `chunk` at once.

    sequences of one rank; 0: only a proof goes through the model
    spill     True or False to decide where hidden states live; None: in memory as long as they take little of it
    stepwise  whether sums are held for one step of a block at a time, or for all of it
    """
    available = available_bytes()
    largest = max(decoder.block_nbytes(layer) for layer in range(decoder.layers))
    widths = _widths(model, stepwise=stepwise)
    products = (1 if needs.hessian else 0) + (1 if needs.cross else 0)
    residual = decoder.hidden if needs.cross else 0
    statistics = max(sum(8 * width * (products * width + residual) for width in step) for step in widths.values())
    widest = max(width for step in widths.values() for width in step)
    statistics += 4 * (2 + products) * widest**2 if needs.hessian else 0
    states = 1 + ceil(chunk * PAIRED) / chunk if needs.cross else 1
    hidden = ceil(4 * states * sequences * length * decoder.hidden)
    tokens = chunk * length
    forward = ceil(4 * tokens * (6 * decoder.hidden + 3 * widest) * states)
    is_large = available is not None and hidden > SPILL_SHARE * available
    return MemoryPlan(3 * largest, statistics, hidden, forward, is_large if spill is None else spill, available)


def _widths(model: Model, *, stepwise: bool) -> dict[object, list[int]]:
    """Widths of the distinct inputs whose sums are held together: those of a block, or of one of its steps."""
    found: dict[object, list[int]] = {}
    shared = {"attn_k", "attn_v", "ffn_up", "ffn_up_exps"}  # see what attn_q and ffn_gate see
    for tensor in model.tensors:
        if tensor.must_be_f32 or tensor.layer is None or tensor.kind in shared:
            continue
        experts = prod(tensor.shape[:-2])
        together = (tensor.layer, tensor.kind) if stepwise else tensor.layer
        found.setdefault(together, []).extend([tensor.columns] * experts)
    return found
