"""Nets of a few operators, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="runs them: pip install 'tersor[onnx]'")
ir = pytest.importorskip("onnx_ir", reason="holds them: pip install 'tersor[onnx]'")
torch = pytest.importorskip("torch", reason="trains them: pip install 'tersor[torch]'")

Array = npt.NDArray[Any]


def one_operator(
    operator: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    outputs: int = 1,
    constant: int | None = None,
) -> Any:
    """Return the ONNX model of one node; inputs from number `constant` on are initializers."""
    constant = len(inputs) if constant is None else constant
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    given = [(name, value) for name, value in zip(names, inputs, strict=True) if value is not None]
    free = [(name, value) for name, value in given if int(name[1:]) < constant]
    fixed = [(name, value) for name, value in given if int(name[1:]) >= constant]
    node = onnx.helper.make_node(
        operator, names, [f"o{place}" for place in range(outputs)], name="the_node", **(attributes or {})
    )
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in free
        ],
        [onnx.helper.make_empty_tensor_value_info(f"o{place}") for place in range(outputs)],
        [onnx.numpy_helper.from_array(value, name) for name, value in fixed],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run_onnx(model: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """Return what ONNX Runtime makes of a model, node by node as it stands."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString() if hasattr(model, "SerializeToString") else ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    made: list[Array] = session.run(None, dict(feeds))
    return made


def run_torch(module: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """Return what a module makes of the same inputs, in their order."""
    with torch.no_grad():
        made = module(*[torch.from_numpy(np.array(value)) for value in feeds.values()])
    return [part.detach().numpy() for part in (made if isinstance(made, tuple) else (made,))]
