"""Running a net in ONNX Runtime, and what may be fed to it: batches in whatever shape a user's loader gives them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tersor.core.errors import EngineError, FormatError, SchemeError, ShapeError
from tersor.graph.net import Array, Net
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime
else:
    ir, onnxruntime = LazyModule("onnx_ir", "onnx"), LazyModule("onnxruntime", "onnx")

__all__ = ["Feeds", "Session", "digest", "feeds_of", "fixed_batch", "items_of", "one", "read_batches"]

Feeds: TypeAlias = dict[str, Array]
QUIET = 4  # of onnxruntime's log levels: only what is fatal, errors come as exceptions


class Session:
    """A net ready to run.

    watched    names of values that are returned beside the outputs
    optimized  False: node by node as the graph stands, with the numbers that the standard defines
    threads    0: as many as there are cores
    data       the file of this very net in ONNX Runtime's own format, to be run instead of it
    """

    def __init__(
        self,
        net: Net,
        watched: Iterable[str] = (),
        *,
        optimized: bool = True,
        threads: int = 0,
        data: bytes | None = None,
    ) -> None:
        self.outputs = [str(value.name) for value in net.outputs]
        self.watched = [name for name in dict.fromkeys(watched) if name not in self.outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = threads
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        data = _watching(net, self.watched).to_bytes() if data is None else data
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but Exception
            raise EngineError(f"{net.name}: ONNX Runtime cannot load it: {_words(error)}") from error

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return outputs and watched values by name."""
        names = [*self.outputs, *self.watched]
        try:
            made = self._session.run(names, feeds)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {_words(error)}") from error
        return dict(zip(names, made, strict=True))

    def all(self, feeds: Feeds) -> list[Array]:
        """Return the outputs in their order."""
        made = self.run(feeds)
        return [made[name] for name in self.outputs]

    def first(self, feeds: Feeds) -> Array:
        """Return the first output."""
        return self.all(feeds)[0]


def _watching(net: Net, names: Sequence[str]) -> Net:
    if not names:
        return net
    copy = net.copy()
    values = copy.values()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def read_batches(net: Net, data: Iterable[Any], *, limit: int | None = None) -> Iterator[Feeds]:
    """Yield what each batch of a loader feeds to the net, checked; SchemeError where there is none.

    data   batches: an array or tensor, a tuple or list of them (a label behind the inputs is left out), or a mapping
           from input names
    limit  how many batches to take
    """
    if limit is not None and limit < 1:
        raise SchemeError(f"{limit} batches of calibration data are not enough: take at least one")
    if isinstance(data, (Mapping, str, bytes)) or not isinstance(data, Iterable):
        raise SchemeError(f"calibration data is a list or loader of batches, got {type(data).__name__}")
    number = -1
    for number, batch in enumerate(itertools.islice(data, limit)):
        yield feeds_of(net, batch, f"calibration batch {number}")
    if number < 0:
        raise SchemeError("the calibration data is empty: give at least one batch")


def feeds_of(net: Net, batch: Any, place: str) -> Feeds:
    """Return one batch by input name; ShapeError, FormatError and SchemeError name what does not fit."""
    inputs = net.inputs
    if isinstance(batch, Mapping):
        absent = [str(value.name) for value in inputs if value.name not in batch]
        if absent:
            raise SchemeError(f"{place}: has {', '.join(map(str, batch))}, but the net takes {', '.join(absent)} too")
        given = [batch[value.name] for value in inputs]
    elif isinstance(batch, (tuple, list)):
        if len(batch) < len(inputs):
            raise SchemeError(f"{place}: {len(batch)} arrays for {len(inputs)} inputs")
        given = list(batch[: len(inputs)])  # what stands behind are labels
    else:
        given = [batch]
    if len(given) != len(inputs):
        names = ", ".join(str(value.name) for value in inputs)
        raise SchemeError(f"{place}: one array, but the net takes {names}: give a tuple or a mapping")
    return {str(value.name): _checked(value, item, place) for value, item in zip(inputs, given, strict=True)}


def items_of(feeds: Feeds) -> int:
    """Return how many items a batch has, by its first input that has axes; one where none has."""
    return next((len(values) for values in feeds.values() if values.ndim), 1)


def one(net: Net, feeds: Feeds) -> Feeds:
    """Return the first item of a batch; the whole of it where inputs do not say that they share an axis that is free.

    A first axis of a fixed size, or of another name than that of the input beside, may be no batch: of the state of a
    recurrent net it is the layers.
    """
    axes = {_free_axis(value) for value in net.inputs if feeds[str(value.name)].ndim}
    if len(axes) != 1 or "" in axes:
        return feeds
    return {name: values[:1] if values.ndim else values for name, values in feeds.items()}


def _free_axis(value: ir.Value) -> str:
    """Return what the first axis of an input is called, or the input where that is free without a name; else ""."""
    axis = value.shape[0] if value.shape is not None else 0
    return "" if isinstance(axis, int) else str(axis.value or value.name)


def fixed_batch(net: Net) -> int | None:
    """Return how many items a net takes at a time; None where it takes any number, or its inputs differ in that."""
    axes = {axis if isinstance(axis, int) else None for value in net.inputs for axis in list(value.shape or ())[:1]}
    return axes.pop() if len(axes) == 1 else None


def digest(batches: Iterable[Feeds]) -> str:
    """Return the SHA-256 of arrays by name, in hexadecimal."""
    found = hashlib.sha256()
    for feeds in batches:
        for name, values in sorted(feeds.items()):
            found.update(f"{name} {values.dtype.str} {values.shape} ".encode())
            found.update(values.tobytes())
    return found.hexdigest()


def _array(item: Any, place: str) -> Array:
    """Return what a loader gives as an array; bfloat16, which numpy has not, as float32."""
    if hasattr(item, "detach"):
        tensor = item.detach().cpu()
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    try:
        return np.asarray(item)
    except ValueError as error:  # rows of different lengths
        raise SchemeError(f"{place} is no array: {error}") from error


def _checked(value: ir.Value, item: Any, place: str) -> Array:
    array = _array(item, f"{place}: {value.name}")
    assert value.dtype is not None, "inputs of a checked model have a type"
    wanted = value.dtype.numpy()
    if array.dtype != wanted:
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f") != (wanted.kind == "f"):
            raise SchemeError(f"{place}: {value.name} is {array.dtype}, the net takes {wanted}")
        with np.errstate(over="ignore"):  # an infinity is found below
            fitting = array.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(fitting, array):
            raise FormatError(f"{place}: {value.name} holds {array.min()} to {array.max()}, the net takes {wanted}")
        array = fitting
    shape = [None if not isinstance(size, int) else size for size in (value.shape or ())]
    fits = len(array.shape) == len(shape) and all(w in (None, s) for w, s in zip(shape, array.shape, strict=False))
    if value.shape is not None and not fits:
        told = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"{place}: {value.name} is {list(array.shape)}, the net takes [{told}]")
    if not array.size:
        raise ShapeError(f"{place}: {value.name} is empty, {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        spot = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise FormatError(f"{place}: {value.name} holds {array[spot]} at {spot}: mend the data or its preparation")
    return np.asarray(array, order="C")  # not ascontiguousarray, which makes an axis of none
