"""ONNX Runtime inside an engine's process: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersor.core.errors import EngineError
from tersor.deploy.running.datatypes import KINDS
from tersor.deploy.running.nets import Array, Axis, NetEngine
from tersor.deploy.running.worker import RefusedError, first_line

__all__ = ["TYPES", "opened"]

TYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(int64)": "INT64",
    "tensor(int32)": "INT32", "tensor(int16)": "INT16", "tensor(int8)": "INT8", "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64", "tensor(bool)": "BOOL",
}  # fmt: skip
"""ONNX Runtime's names of element types → those of the Open Inference Protocol."""


class _OnnxNet:
    """An ONNX file in a session; a `nets.Net`."""

    def __init__(self, options: dict[str, Any]) -> None:
        import onnxruntime  # noqa: PLC0415 (an optional engine, in this process alone)
        from onnxruntime.capi.onnxruntime_pybind11_state import (  # noqa: PLC0415 (the same)
            InvalidArgument,
        )

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(options.get("threads", 1))
        settings.log_severity_level = 4
        if not options.get("layout", True):
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # Threads that spin for work would take the gateway's processor time.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(options["path"], settings, providers=["CPUExecutionProvider"])
        self._wrong_input = InvalidArgument
        self.inputs = dict(map(_declared, self._session.get_inputs()))
        self.outputs = dict(map(_declared, self._session.get_outputs()))

    def compute(self, wanted: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run it once."""
        try:
            return [np.ascontiguousarray(array) for array in self._session.run(list(wanted), dict(feeds))]
        except self._wrong_input as error:  # a place in a table that has no such row, …
            raise RefusedError(first_line(error)) from error
        except Exception as error:  # its own classes have no common ground but this
            raise EngineError(first_line(error)) from error


def _declared(value: Any) -> tuple[str, tuple[str, str, tuple[Axis, ...]]]:
    kind = TYPES.get(value.type, value.type)
    return value.name, (kind, KINDS.get(kind, ""), tuple(value.shape))


def opened(options: dict[str, Any]) -> NetEngine:
    """Load the ONNX file that `path` names."""
    return NetEngine(_OnnxNet(options), "onnxruntime_onnx", options)
