"""How well a quantized net does what the full-precision one does, item by item."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.evaluation import Evaluation, Histogram, Metric, Sample
from tersor.evaluation.layers.weights import Sums
from tersor.evaluation.nets.calling import Net, Selector, at_rest, call, is_module, scores_of
from tersor.evaluation.nets.images import ArrayImages, FolderImages
from tersor.evaluation.own import applied
from tersor.evaluation.paired import Pairs, paired_difference_interval
from tersor.evaluation.statistics import Interval, mean_interval, proportion_interval

__all__ = ["NetMetric", "NetProgress", "evaluate_net"]

SHOWN_SAMPLES, SHOWN_CLASSES = 16, 10
TOP = 5
_EDGES = tuple(float(edge) for edge in np.linspace(-1, 1, 41).round(3))

NetMetric: TypeAlias = Callable[[Float32, npt.NDArray[np.int64]], npt.ArrayLike]
"""Takes the scores [items, classes] and labels [items] of a batch, gives one number for each item, [items]."""


class NetProgress(Protocol):
    """Called after every batch."""

    def __call__(self, name: str, done: int, total: int, /) -> None:
        """`done` of `total` items have been seen; 0: nobody knows how many there are."""


def evaluate_net(
    net: Net,
    *,
    against: Net,
    data: Iterable[tuple[Any, Any]],
    metrics: Mapping[str, NetMetric] | None = None,
    output: Selector = None,
    classes: Sequence[str] = (),
    progress: NetProgress | None = None,
) -> Evaluation:
    """Run both nets on `data` and return accuracies, agreement, what each class loses, and items that went wrong.

    net, against  modules (on any device, set to evaluation for this call) or functions
    data          batches (inputs, labels): a DataLoader, a list, `open_images(…)`; labels whole numbers [items] or
                  None, where only agreement and the distance of the scores are measured
    metrics       functions of the user's own: name → NetMetric; each is also measured on the reference
    output        which part of what the nets return holds the scores, where that is not plain
    classes       their names; None: those of the data, else numbers

    Every interval is a 95 % one with the item as its unit; differences are paired. Raises SchemeError, ShapeError and
    FormatError by name.
    """
    began = time.perf_counter()
    names = tuple(classes) or tuple(getattr(data, "classes", ()))
    total = _total(data)
    items = _Items(dict(metrics or {}), names)
    with at_rest(net, against):
        for inputs, labels in data:
            subject, reference = scores_of(call(net, inputs), output), scores_of(call(against, inputs), output)
            items.add(subject, reference, labels)
            if progress is not None:
                progress("items", items.count, total)
    if not items.count:
        raise SchemeError("the data holds no items")
    images = data if isinstance(data, (ArrayImages, FolderImages)) else None
    return Evaluation(
        task="classification",
        subject=_name(net),
        subject_sha256="",
        reference=_name(against),
        data=images.path.name if images is not None else type(data).__name__,
        data_sha256=images.digest() if images is not None else "",
        engines={"subject": _engine(net), "reference": _engine(against)},
        settings={"items": items.count, "classes": items.classes},
        metrics=tuple(items.metrics()),
        histograms=(items.histogram(),) if items.labelled else (),
        samples=items.samples(),
        notes=items.notes(),
        seconds=time.perf_counter() - began,
        versions={"torch": version("torch"), "numpy": np.__version__},
    )


@dataclass
class _Items:
    """What is kept of every item: a few numbers, never its scores."""

    own: dict[str, NetMetric]
    names: tuple[str, ...]
    count: int = 0
    classes: int = 0
    labelled: bool = False
    columns: dict[str, list[npt.NDArray[np.float64]]] = field(default_factory=dict)
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)
    worst: list[tuple[float, int, Sample]] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)

    def add(self, subject: Float32, reference: Float32, labels: Any) -> None:
        """Take one batch."""
        if subject.shape != reference.shape:
            raise ShapeError(f"the net returns {subject.shape}, the reference {reference.shape}")
        if self.count and (subject.shape[1] != self.classes or (labels is not None) != self.labelled):
            raise ShapeError(f"batches must be alike: {subject.shape[1]} classes now, {self.classes} before, or labels")
        self.classes, self.labelled = subject.shape[1], labels is not None
        self.sums.add(reference, subject)
        self._keep("agreement", subject.argmax(axis=1) == reference.argmax(axis=1))
        if labels is not None:
            self._labelled(subject, reference, self._checked(labels, len(subject)))
        self.count += len(subject)

    def _labelled(self, subject: Float32, reference: Float32, labels: npt.NDArray[np.int64]) -> None:
        self.labels.append(labels)
        for prefix, scores in (("", subject), ("reference_", reference)):
            self._keep(f"{prefix}top1_accuracy", scores.argmax(axis=1) == labels)
            if self.classes > TOP:
                self._keep(f"{prefix}top5_accuracy", _rank(scores, labels) < TOP)
            for name, metric in self.own.items():
                values = applied(name, metric, scores, labels)
                if values.shape != labels.shape:
                    raise ShapeError(f"the metric {name} must give one number an item, {labels.shape}, {values.shape}")
                self._keep(prefix + name, values)
        place = np.arange(len(labels))
        before, after = (_probabilities(scores)[place, labels] for scores in (reference, subject))
        self._keep("lost_probability", before - after)
        fallen = np.flatnonzero((reference.argmax(axis=1) == labels) & (subject.argmax(axis=1) != labels))
        for item in fallen:
            lost = float(before[item] - after[item])
            taken = self._class(int(subject[item].argmax()))
            detail = f"probability {before[item]:.3f} → {after[item]:.3f}; now {taken}"
            number = self.count + int(item)
            sample = Sample("", f"item {number}: {self._class(int(labels[item]))}", "", lost, detail)
            heapq.heappush(self.worst, (lost, -number, sample))
        self.worst = heapq.nlargest(SHOWN_SAMPLES, self.worst)
        heapq.heapify(self.worst)

    def metrics(self) -> list[Metric]:
        """Every metric with its interval; the classes that lose most come last."""
        found = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        lost = found.pop("lost_probability", None)
        made = [
            _metric(
                name, (mean_interval if name.removeprefix("reference_") in self.own else proportion_interval)(values)
            )
            for name, values in found.items()
        ]
        if lost is not None:
            before, after = (found[f"{name}top1_accuracy"] > 0 for name in ("reference_", ""))
            made.append(_metric("accuracy_drop", paired_difference_interval(Pairs.of(before, after))))
            made += self._class_drops(before, after)
        quality = self.sums.sqnr_db
        return [*made, *([] if quality is None else [Metric("output_sqnr", quality, "dB", units=self.count)])]

    def _class_drops(self, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> list[Metric]:
        labels = np.concatenate(self.labels)
        items = {int(label): labels == label for label in np.unique(labels)}
        of_class = {label: Pairs.of(before[there], after[there]) for label, there in items.items()}
        drops = {label: paired_difference_interval(pairs) for label, pairs in of_class.items()}
        worst = sorted(drops, key=lambda label: (-drops[label].value, label))[:SHOWN_CLASSES]
        changed = [label for label in worst if of_class[label].wins + of_class[label].losses]
        return [_metric(f"accuracy_drop/{self._class(label)}", drops[label]) for label in changed]

    def histogram(self) -> Histogram:
        """How much probability the right class lost."""
        values = np.concatenate(self.columns["lost_probability"])
        return Histogram("lost_probability", _EDGES, tuple(int(n) for n in np.histogram(values, _EDGES)[0]))

    def samples(self) -> tuple[Sample, ...]:
        """Items that the reference got right and the net gets wrong, the surest of them first."""
        return tuple(sample for _, _, sample in heapq.nlargest(SHOWN_SAMPLES, self.worst))

    def notes(self) -> tuple[str, ...]:
        """What went up and down, in words."""
        if not self.labelled:
            return ("the data has no labels: accuracy was not measured",)
        before, after = (np.concatenate(self.columns[name]) for name in ("reference_top1_accuracy", "top1_accuracy"))
        fell, rose = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
        return (f"{fell} of {self.count} items went from right to wrong, {rose} from wrong to right",)

    def _keep(self, name: str, values: npt.NDArray[Any]) -> None:
        self.columns.setdefault(name, []).append(values.astype(np.float64))

    def _class(self, number: int) -> str:
        return self.names[number] if number < len(self.names) else f"class {number}"

    def _checked(self, labels: Any, count: int) -> npt.NDArray[np.int64]:
        values = labels.detach().cpu().numpy() if hasattr(labels, "detach") else np.asarray(labels)
        if values.shape != (count,) or values.dtype.kind not in "iu":
            raise ShapeError(f"labels must be whole numbers [{count}], got {values.dtype} {values.shape}")
        if count and not (values.min() >= 0 and values.max() < self.classes):
            raise ShapeError(f"labels from {values.min()} to {values.max()}, the nets know {self.classes} classes")
        return values.astype(np.int64)


def _total(data: Iterable[Any]) -> int:
    """How many items there are; 0 where only batches could be counted."""
    if isinstance(data, (ArrayImages, FolderImages)):
        return len(data)
    dataset = getattr(data, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else 0


def _rank(scores: Float32, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many classes score higher than the right one; of equals the first counts as higher."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank: npt.NDArray[np.int64] = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return rank


def _probabilities(scores: Float32) -> npt.NDArray[np.float64]:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    made: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return made


def _metric(name: str, interval: Interval) -> Metric:
    return Metric(name, interval.value, low=interval.low, high=interval.high, units=interval.units)


def _name(net: Net) -> str:
    return type(net).__name__ if is_module(net) else getattr(net, "__name__", type(net).__name__)


def _engine(net: Net) -> str:
    return f"torch {version('torch')}" if is_module(net) else "a function"
