"""Nets inside an engine's process: bytes of a request → arrays → the net → bytes of an answer; alone or in batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import EngineError, SchemeError
from tersor.deploy.running.batching import Batcher, Dropped
from tersor.deploy.running.messages import Message
from tersor.deploy.running.worker import Emit, RefusedError

__all__ = ["Array", "Axis", "Declared", "Net", "NetEngine", "described"]

Array: TypeAlias = npt.NDArray[Any]
Axis: TypeAlias = int | str | None
"""A size; or what one that varies is called; None: it varies and has no name."""
Declared: TypeAlias = Mapping[str, tuple[str, str, tuple[Axis, ...]]]
"""Name → type of the Open Inference Protocol, numpy's type or "", axes."""
PROBE_SIZE = 4
"""Of axes that vary, in made-up inputs."""
PROBE_SCALES = (1.0, 1000.0)
"""Of the two rows: what is shared between them, as the range of a rounding is, shows in the small one."""
SAME = 0.05
"""Part of the largest number of a row by which it may differ in a batch: sums are rounded in another order, and an
integer net may round to the next step then."""


class Net(Protocol):
    """What runs."""

    @property
    def inputs(self) -> Declared:
        """In order."""
        ...

    @property
    def outputs(self) -> Declared:
        """In order."""
        ...

    def compute(self, wanted: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Return the wanted outputs, of inputs of the types and shapes that are declared; called by many threads.

        Raises RefusedError where their values are nothing that it takes, EngineError where it fails.
        """
        ...


class NetEngine:
    """Requests are {"inputs": [{"name", "shape", "dtype"}], "outputs": [names]}, the payload their bytes in turn."""

    def __init__(self, net: Net, platform: str, options: Mapping[str, Any]) -> None:
        self._net = net
        self._batcher: Batcher | None = None
        most = int(options.get("max_batch", 1))
        if most > 1:
            _check_rows(net)
            self._batcher = Batcher(net.compute, most, float(options.get("max_wait_ms", 0.0)) / 1000)
        self.facts = {"platform": platform, "inputs": described(net.inputs), "outputs": described(net.outputs)}

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> Message | None:
        """Run the net once, for this request or for others with it."""
        wanted = tuple(request.get("outputs") or self._net.outputs)
        absent = sorted(set(wanted) - set(self._net.outputs))
        if absent:
            raise RefusedError(f"no output {', '.join(absent)}; there are {', '.join(self._net.outputs)}")
        feeds, at = {}, 0
        for entry in request["inputs"]:
            kind, count = np.dtype(entry["dtype"]), math.prod(entry["shape"])
            feeds[entry["name"]] = np.frombuffer(payload, kind, offset=at, count=count).reshape(entry["shape"])
            at += kind.itemsize * count
        _check_fit(self._net.inputs, feeds)
        try:
            made, together = (
                (self._net.compute(wanted, feeds), 1)
                if self._batcher is None
                else self._batcher.run(wanted, feeds, emit.is_cancelled)
            )
        except Dropped:
            return None
        outputs = [
            {"name": name, "shape": list(array.shape), "dtype": array.dtype.str}
            for name, array in zip(wanted, made, strict=True)
        ]
        return {"outputs": outputs, "together": together}, b"".join(array.tobytes() for array in made)

    def close(self) -> None:
        """Nothing: the process ends."""


def described(values: Declared) -> list[dict[str, Any]]:
    """Return inputs or outputs as the protocol tells them."""
    return [
        {"name": name, "datatype": kind, "shape": [size if isinstance(size, int) else -1 for size in axes]}
        for name, (kind, _, axes) in values.items()
    ]


def _check_fit(declared: Declared, feeds: Mapping[str, Array]) -> None:
    """Refuse inputs of other types or shapes: engines fail at them as if they were broken, or take them."""
    for name, (_, kind, axes) in declared.items():
        array = feeds.get(name)
        if array is None or array.dtype.str != kind or not _fits(array.shape, axes):
            told = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            shape = [axis if isinstance(axis, int) else -1 for axis in axes]
            raise RefusedError(f"input {name}: {kind} {shape}, got {told}")


def _fits(shape: Sequence[int], axes: Sequence[Axis]) -> bool:
    return len(shape) == len(axes) and all(
        size == axis or not isinstance(axis, int) for size, axis in zip(shape, axes, strict=True)
    )


def _check_rows(net: Net) -> None:
    """Raise SchemeError where requests cannot be put together: no common first axis, or rows that depend on others."""
    firsts = {name: axes[0] if axes else None for name, (_, _, axes) in (*net.inputs.items(), *net.outputs.items())}
    if len(set(firsts.values())) != 1 or not all(isinstance(first, str) for first in firsts.values()):
        told = ", ".join(f"{name}: {first!r}" for name, first in firsts.items())
        raise SchemeError(
            f"max_batch needs a first axis that varies and has one name in all inputs and outputs ({told}); "
            "export the net with a dynamic batch, or leave max_batch out"
        )
    rows = [_made_up(net, seed, scale) for seed, scale in enumerate(PROBE_SCALES)]
    names = tuple(net.outputs)
    try:
        alone = [net.compute(names, feeds) for feeds in rows]
        for order in ((0, 1), (1, 0)):  # a row may depend on those before it alone
            both = net.compute(names, {name: np.concatenate([rows[row][name] for row in order]) for name in net.inputs})
            wrong = [
                name
                for place, row in enumerate(order)
                for name, one, other in zip(names, alone[row], both, strict=True)
                if not _is_same(one, other[place : place + 1])
            ]
            if wrong:
                raise SchemeError(
                    f"max_batch: the rows of a batch change one another's {wrong[0]}, as in nets that find the ranges "
                    "of activations while they run; leave max_batch out"
                )
    except (RefusedError, EngineError):
        return  # made-up inputs are not what it takes, and tell nothing


def _made_up(net: Net, seed: int, scale: float) -> dict[str, Array]:
    random, made = np.random.default_rng(seed), {}
    for name, (_, kind, axes) in net.inputs.items():
        shape = [1, *(size if isinstance(size, int) else PROBE_SIZE for size in axes[1:])]
        is_float = np.dtype(kind).kind == "f"
        made[name] = (random.standard_normal(shape) * scale if is_float else random.integers(0, 2, shape)).astype(kind)
    return made


def _is_same(alone: Array, together: Array) -> bool:
    if alone.shape != together.shape:
        return False
    one, other = alone.astype(np.float64), together.astype(np.float64)
    finite = np.isfinite(one)
    if (finite != np.isfinite(other)).any():
        return False
    one, other = one[finite], other[finite]
    return not one.size or bool(np.abs(one - other).max() <= SAME * np.abs(one).max())
