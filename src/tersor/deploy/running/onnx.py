"""ONNX Runtime inside an engine's process: tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.deploy.running.messages import Message
from tersor.deploy.running.worker import Emit, RefusedError

__all__ = ["TYPES", "opened"]

TYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(int64)": "INT64",
    "tensor(int32)": "INT32", "tensor(int16)": "INT16", "tensor(int8)": "INT8", "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64", "tensor(bool)": "BOOL",
}  # fmt: skip
"""ONNX Runtime's names of element types → those of the Open Inference Protocol."""


class _Net:
    """Requests are {"inputs": [{"name", "shape", "dtype"}], "outputs": [names]}, the payload their bytes in turn."""

    def __init__(self, options: dict[str, Any]) -> None:
        import onnxruntime  # noqa: PLC0415 (an optional engine, in this process alone)

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(options.get("threads", 1))
        settings.log_severity_level = 4
        # Threads that spin for work would take the gateway's processor time.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(options["path"], settings, providers=["CPUExecutionProvider"])
        self._outputs = [value.name for value in self._session.get_outputs()]
        self.facts = {
            "inputs": [_described(value) for value in self._session.get_inputs()],
            "outputs": [_described(value) for value in self._session.get_outputs()],
        }

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> Message:
        """Run the net once."""
        del emit
        wanted = request.get("outputs") or self._outputs
        absent = sorted(set(wanted) - set(self._outputs))
        if absent:
            raise RefusedError(f"no output {', '.join(absent)}; there are {', '.join(self._outputs)}")
        feeds, at = {}, 0
        for entry in request["inputs"]:
            kind = np.dtype(entry["dtype"])
            size = kind.itemsize * int(np.prod(entry["shape"], dtype=np.int64))
            feeds[entry["name"]] = np.frombuffer(payload, kind, offset=at, count=size // kind.itemsize).reshape(
                entry["shape"]
            )
            at += size
        try:
            made = [np.ascontiguousarray(array) for array in self._session.run(wanted, feeds)]
        except Exception as error:  # its own classes have no common ground but this
            raise RefusedError(str(error).split("\n", maxsplit=1)[0][:400]) from error
        outputs = [
            {"name": name, "shape": list(array.shape), "dtype": array.dtype.str}
            for name, array in zip(wanted, made, strict=True)
        ]
        return {"outputs": outputs}, b"".join(array.tobytes() for array in made)

    def close(self) -> None:
        """Nothing: the process ends."""


def _described(value: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return {"name": value.name, "datatype": TYPES.get(value.type, value.type), "shape": shape}


def opened(options: dict[str, Any]) -> _Net:
    """Load the ONNX file that `path` names."""
    return _Net(options)
