"""A net in ONNX Runtime's own format: fused ahead, read without a parser of graphs, as its mobile builds want it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.core.errors import EngineError
from tersor.graph.net import Net
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnxruntime
else:
    onnxruntime = LazyModule("onnxruntime", "onnx")

__all__ = ["ort_bytes"]

QUIET = 4


def ort_bytes(net: Net) -> bytes:
    """Return the bytes of an .ort file; EngineError where ONNX Runtime cannot load the net.

    What is fused is what any processor can run: layouts that only this one has are left to the session that loads it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    with tempfile.TemporaryDirectory(prefix="tersor-ort-") as folder:
        target = Path(folder) / "net.ort"
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(net.to_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but Exception
            raise EngineError(
                f"{net.name}: ONNX Runtime cannot write it: {' '.join(str(error).split())[:400]}"
            ) from error
        return target.read_bytes()
