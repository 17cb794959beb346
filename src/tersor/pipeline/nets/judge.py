"""What a net on integers loses on labelled data, or, where there is none, how often it disagrees with the float net."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sessions import Feeds, Session, feeds_of

__all__ = ["Judge", "scores_by"]

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Judge:
    """Data and what the float net says of it.

    feeds    batches
    answers  the right classes, batch by batch: labels, or the float net's own where there are none
    right    how many of them the float net has
    """

    feeds: Sequence[Feeds]
    answers: Sequence[Labels]
    right: int
    is_labelled: bool

    @classmethod
    def open(cls, net: Net, data: Iterable[Any], *, labelled: bool) -> Judge:
        """Run the float net over `data`: batches of (inputs, labels) or, without labels, of inputs."""
        session = Session(net)
        feeds, answers, right = [], [], 0
        for number, batch in enumerate(data):
            place = f"batch {number}"
            if labelled and not (isinstance(batch, (tuple, list)) and len(batch) >= len(net.inputs) + 1):
                raise SchemeError(f"{place}: has no labels behind its inputs")
            given = feeds_of(net, batch, place)
            said = _classes(session.first(given), place)
            wanted = _labels(batch[-1], place) if labelled else said
            if len(wanted) != len(said):
                raise ShapeError(f"{place}: {len(wanted)} labels for {len(said)} items")
            feeds.append(given)
            answers.append(wanted)
            right += int((said == wanted).sum())
        if not feeds:
            raise SchemeError("the data to judge by is empty")
        return cls(feeds, answers, right, labelled)

    @property
    def items(self) -> int:
        """How many were judged."""
        return sum(len(answer) for answer in self.answers)

    def drop(self, quantized: QuantizedNet) -> float:
        """Return what the net loses, in percentage points of accuracy (or of agreement)."""
        session = Session(quantized.net)
        right = sum(
            int((_classes(session.first(feeds), "the net") == answer).sum())
            for feeds, answer in zip(self.feeds, self.answers, strict=True)
        )
        return 100 * (self.right - right) / self.items


def scores_by(net: Net, threads: int = 0) -> Any:
    """Return a function from inputs to scores, as `evaluate_net` takes it, named as the net."""
    session = Session(net, threads=threads)

    def scores(*inputs: Any, **named: Any) -> npt.NDArray[Any]:
        return session.first(feeds_of(net, named or inputs, net.name))

    scores.__name__ = net.name
    return scores


def _classes(scores: npt.NDArray[Any], place: str) -> Labels:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ShapeError(f"{place}: the net's first output is {list(scores.shape)}; classes need [items, classes]")
    found: Labels = scores.argmax(axis=1).astype(np.int64)
    return found


def _labels(labels: Any, place: str) -> Labels:
    values = labels.detach().cpu().numpy() if hasattr(labels, "detach") else np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ShapeError(f"{place}: labels must be whole numbers [items], got {values.dtype} {list(values.shape)}")
    return values.astype(np.int64)
