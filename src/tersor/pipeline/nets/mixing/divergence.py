"""How far a net's answers are from those of the float net, item by item, in nats.

Of classes it is the Kullback-Leibler divergence of the predictions. Of other outputs half the energy of the noise over
that of the signal: the divergence of two normal distributions of the signal's width that lie as far apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.graph.net import Array, Net
from tersor.graph.sessions import Feeds, Session, items_of

__all__ = ["Yardstick"]

Numbers: TypeAlias = npt.NDArray[np.float64]
CERTAIN = 1e-3
"""Rows whose numbers add up to 1 as nearly as this are probabilities already."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Inputs, and what the float net makes of them, batch by batch; `power` is the mean energy of an item's outputs."""

    batches: Sequence[Feeds]
    wanted: Sequence[Mapping[str, Array]]
    power: float
    threads: int = 0

    @classmethod
    def open(cls, net: Net, batches: Sequence[Feeds], *, threads: int = 0) -> Yardstick:
        """Run the float net over `batches`."""
        session = Session(net, threads=threads)
        wanted = [session.run(feeds) for feeds in batches]
        energy = sum(float(np.square(values.astype(np.float64)).sum()) for made in wanted for values in _floats(made))
        return cls(batches, wanted, energy / max(_items(batches), 1), threads)

    @property
    def items(self) -> int:
        """How many are compared."""
        return _items(self.batches)

    def divergences(self, net: Net) -> Numbers:
        """Return the divergence of each item; of each batch, where outputs are not by items."""
        session = Session(net, threads=self.threads)
        return np.concatenate(
            [self._of(session.run(feeds), wanted) for feeds, wanted in zip(self.batches, self.wanted, strict=True)]
        )

    def divergence(self, net: Net) -> float:
        """Return the mean."""
        return float(self.divergences(net).mean())

    def _of(self, made: Mapping[str, Array], wanted: Mapping[str, Array]) -> Numbers:
        name = next(iter(wanted))
        if wanted[name].dtype.kind == "f" and wanted[name].ndim == 2 and wanted[name].shape[1] > 1:
            full, other = _log_shares(wanted[name]), _log_shares(made[name])
            found: Numbers = (np.exp(full) * (full - other)).sum(axis=1)
            return np.maximum(found, 0.0)
        names = [key for key, values in wanted.items() if values.dtype.kind == "f"]
        count = {len(wanted[key]) if wanted[key].ndim else 0 for key in names}
        rows = count.pop() if len(count) == 1 else 0
        noise = np.zeros(rows or 1)
        for key in names:
            error = np.square(made[key].astype(np.float64) - wanted[key])
            noise += error.reshape(rows or 1, -1).sum(axis=1)
        return noise / (2 * self.power) if self.power > 0 else noise


def _log_shares(scores: Array) -> Numbers:
    """Return the logarithms of probabilities [items, classes], of scores or of what is probabilities already."""
    values = scores.astype(np.float64)
    if values.min(initial=0.0) >= 0 and bool((np.abs(values.sum(axis=1) - 1) < CERTAIN).all()):
        return np.asarray(np.log(np.maximum(values, np.finfo(np.float32).tiny)))
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _floats(made: Mapping[str, Array]) -> list[Array]:
    return [values for values in made.values() if values.dtype.kind == "f"]


def _items(batches: Sequence[Feeds]) -> int:
    return sum(map(items_of, batches))
