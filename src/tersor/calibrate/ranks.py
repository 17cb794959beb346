"""Several processes on one calibration: each has a part of the text, sums go to one owner, results to all.

Started by torchrun, which sets RANK and WORLD_SIZE; without it there is one rank and nothing is sent. The backend is
gloo on CPUs and nccl on GPUs. A rank that is lost ends the others with an EngineError; finished blocks are on disk.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.sequences import Sequences
from tersor.core.errors import EngineError, SchemeError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.by_torch.stored import place_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Ranks", "deal", "open_ranks"]

TIMEOUT = timedelta(minutes=30)
"""Longest silence of another rank; a block of a very large model takes minutes."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size`."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def share(self, sequences: Sequences, chunk: int) -> Sequences:
        """Return this rank's part: whole chunks, so that every chunk is summed as it would be by one rank."""
        chunks = -(-len(sequences.ids) // chunk)
        if chunks < self.size:
            raise SchemeError(
                f"{len(sequences.ids)} sequences are {chunks} chunks of {chunk}, too few for {self.size} ranks; "
                "give more sequences or fewer ranks"
            )
        first, last = (chunks * part // self.size * chunk for part in (self.rank, self.rank + 1))
        return replace(sequences, ids=sequences.ids[first:last])

    def reduce(self, sums: Sums, owners: Collection[int]) -> None:
        """Add up over ranks; only the owners' `sums` hold the products then, everybody's all that is a row."""
        if self.size == 1:
            return
        with _speaking():
            tokens = torch.tensor([sums.tokens, sums.paired], dtype=torch.int64, device=self.device)
            torch.distributed.all_reduce(tokens)
            torch.distributed.all_reduce(sums.squares)
            if sums.peaks is not None:
                torch.distributed.all_reduce(sums.peaks, op=torch.distributed.ReduceOp.MAX)
            for part in (sums.product, sums.lag, sums.residual):
                if part is None:
                    continue
                if len(owners) > 1:
                    torch.distributed.all_reduce(part)
                else:
                    torch.distributed.reduce(part, dst=next(iter(owners)))
        sums.tokens, sums.paired = tokens.tolist()

    def broadcast(self, values: Tensor, owner: int) -> None:
        """Fill `values` on every rank with the owner's."""
        if self.size > 1:
            with _speaking():
                torch.distributed.broadcast(values, src=owner)

    def tell(self, value: Any, owner: int = 0) -> Any:
        """Return the owner's `value` on every rank; plain Python values."""
        if self.size == 1:
            return value
        box = [value]
        with _speaking():
            torch.distributed.broadcast_object_list(box, src=owner, device=torch.device(self.device))
        return box[0]

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of `values` over all ranks."""
        if self.size == 1:
            return list(values)
        with _speaking():
            made = torch.tensor(values, dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(made)
        found: list[float] = made.tolist()
        return found


@contextmanager
def open_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """Join the other processes that torchrun started; a lone process is rank 0 of 1.

    Raises SchemeError where torch knows no such device, MissingError where this machine has none.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ
    if device.startswith("cuda") and not is_alone:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place_of(device)
    if is_alone:
        yield Ranks(device=device)
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    with _speaking():
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        torch.distributed.destroy_process_group()


def deal(costs: Sequence[float], size: int) -> list[int]:
    """Return an owner for each piece of work, so that all finish at about the same time: the largest first.

    >>> deal([5, 1, 1, 4, 1], 2)
    [0, 1, 0, 1, 1]
    """
    loads, owners = [0.0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner = loads.index(min(loads))
        owners[index] = owner
        loads[owner] += costs[index]
    return owners


@contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineError(
            f"another rank was lost or cannot be reached ({str(error).splitlines()[0]:.160}); finished blocks are "
            "kept: start all ranks again with --resume"
        ) from error
