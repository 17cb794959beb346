"""OpenVINO inside an engine's process: tensors in, tensors out, of an ONNX file."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersor.core.errors import EngineError, MissingError
from tersor.deploy.running.datatypes import KINDS
from tersor.deploy.running.nets import Array, Axis, NetEngine

__all__ = ["TYPES", "opened"]

TYPES = {
    "f32": "FP32", "f64": "FP64", "f16": "FP16", "i64": "INT64", "i32": "INT32", "i16": "INT16", "i8": "INT8",
    "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "u64": "UINT64", "boolean": "BOOL",
}  # fmt: skip
"""OpenVINO's names of element types → those of the Open Inference Protocol."""


class _OpenvinoNet:
    """An ONNX file, compiled; a `nets.Net`."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            openvino: Any = importlib.import_module("openvino")
        except ImportError as error:
            raise MissingError("engine openvino needs it: pip install openvino") from error
        settings = {
            "INFERENCE_NUM_THREADS": int(options.get("threads", 1)),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 unasked, which no gate has judged
            # Gateway and variants share the machine: nobody keeps a core to itself.
            "ENABLE_CPU_PINNING": False,
        }
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(options["path"]), "CPU", settings)
        self._request, self._turn = self._compiled.create_infer_request(), threading.Lock()
        self.inputs = dict(map(_declared, self._compiled.inputs))
        self.outputs = dict(map(_declared, self._compiled.outputs))
        self._ports = {_name(port): port for port in self._compiled.outputs}

    def compute(self, wanted: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run it once, one request after the other.

        It has one stream, so that requests would wait for one another inside of it; and there, one that holds Python's
        lock waits for one that wants it, now and then for ever.
        """
        with self._turn:
            try:
                made = self._request.infer(dict(feeds))
            except Exception as error:  # its own classes have no common ground but this
                raise EngineError(_last_line(str(error))) from error
            return [np.array(made[self._ports[name]]) for name in wanted]  # a copy: the next run writes over it


def _declared(port: Any) -> tuple[str, tuple[str, str, tuple[Axis, ...]]]:
    kind = TYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name())
    axes = tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in port.partial_shape)
    return _name(port), (kind, KINDS.get(kind, ""), axes)


def _name(port: Any) -> str:
    return str(port.any_name)


def _last_line(text: str) -> str:
    """Its errors begin with places in its own source; what went wrong stands last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:400]


def opened(options: dict[str, Any]) -> NetEngine:
    """Load the ONNX file that `path` names."""
    return NetEngine(_OpenvinoNet(options), "openvino", options)
