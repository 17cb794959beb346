"""A net on integers that tells, instead of what it says, how many activations its quantizers cut off, layer by layer.

The ranges that calibration found stand in the graph: scale and zero point of each QuantizeLinear on an activation. What
goes into it is computed by ONNX Runtime, and counted beyond half a step outside of the codes. Where the lowest code
stands for zero, what lies below is cut off by design, as a Relu does, and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError
from tersor.deploy.running.messages import Message
from tersor.deploy.running.worker import Emit, RefusedError, first_line

__all__ = ["Layer", "layers_of", "opened"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantizer: the value that it rounds, and the numbers between which it cuts nothing off."""

    value: str
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]

    def clipped(self, numbers: npt.NDArray[Any]) -> int:
        """Return how many lie outside; NaN does."""
        return int(numbers.size - np.count_nonzero((numbers >= self.low) & (numbers <= self.high)))


def layers_of(model: Any) -> Iterator[Layer]:
    """Yield the quantizers of activations of an ONNX model, those whose scale is stored in it."""
    import onnx  # noqa: PLC0415 (an optional package, in this process alone)

    stored = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in stored or node.input[1] not in stored:
            continue
        scale = onnx.numpy_helper.to_array(stored[node.input[1]]).astype(np.float32)
        zero = np.zeros(scale.shape, np.uint8)
        if len(node.input) > 2 and node.input[2]:
            if node.input[2] not in stored:
                continue
            zero = onnx.numpy_helper.to_array(stored[node.input[2]])
        if zero.dtype.kind not in "iu" or zero.ndim > 0 or not (scale > 0).all():
            continue  # one range for each channel: such quantizers are of weights
        codes = np.iinfo(zero.dtype)
        low = scale * (codes.min - int(zero) - 0.5) if zero > codes.min else -np.inf
        yield Layer(node.input[0], np.float32(low), np.float32(scale * (codes.max - int(zero) + 0.5)))  # type: ignore[arg-type]  # scalars compare like arrays


class _Counting:
    """Requests are those of `nets.NetEngine`; an answer is {"layers": {value: [clipped, all]}}."""

    def __init__(self, options: dict[str, Any]) -> None:
        import onnx  # noqa: PLC0415 (as above)
        import onnxruntime  # noqa: PLC0415 (as above)

        path = Path(options["path"])
        model = onnx.load(path)
        self._layers = {layer.value: layer for layer in layers_of(model)}
        if not self._layers:
            raise FormatError(f"{path.name}: no activation is rounded to a stored range")
        self._inputs = {value.name for value in model.graph.input}
        told = {value.name for value in model.graph.output}
        for name in self._layers:
            if name not in self._inputs | told:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        ends = {name: [float(layer.low), float(layer.high)] for name, layer in self._layers.items()}
        self.facts: dict[str, Any] = {"layers": {name: [str(end) for end in both] for name, both in ends.items()}}

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> Message:
        """Count over all rows of a request."""
        del emit
        feeds, at = {}, 0
        for entry in request["inputs"]:
            kind, count = np.dtype(entry["dtype"]), math.prod(entry["shape"])
            feeds[entry["name"]] = np.frombuffer(payload, kind, offset=at, count=count).reshape(entry["shape"])
            at += kind.itemsize * count
        inner = [name for name in self._layers if name not in self._inputs]
        try:
            made = dict(zip(inner, self._session.run(inner, feeds) if inner else (), strict=True))
        except Exception as error:  # its own classes have no common ground but this
            raise RefusedError(first_line(error)) from error
        numbers = {name: feeds[name] if name in feeds else made[name] for name in self._layers}
        return {"layers": {name: [self._layers[name].clipped(one), one.size] for name, one in numbers.items()}}, b""

    def close(self) -> None:
        """Nothing: the process ends."""


def opened(options: dict[str, Any]) -> _Counting:
    """Load the ONNX file that `path` names; FormatError where it rounds no activation to a stored range."""
    return _Counting(options)
