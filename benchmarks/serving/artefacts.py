"""Small models to serve: nets of one input and one output, and the embedded language model in two file types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tersor
from tersor import reference_model
from tersor.files.gguf import GgufFile

WIDTH = 64
SMALL = """
  small:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: onnxruntime, path: small.onnx}
      full: {engine: onnxruntime, path: small.onnx}
    limits: {in_flight: 64, queue: 256}"""
"""The entry in a deployment of a net whose work is next to nothing."""


def weights(width: int) -> npt.NDArray[np.float32]:
    """Return the matrix of `net`, [width, width], that keeps lengths about the same."""
    made: npt.NDArray[np.float32] = np.random.default_rng(width).standard_normal((width, width), np.float32)
    made /= np.float32(np.sqrt(width))
    return made


def net(path: Path, width: int = WIDTH, layers: int = 1, *, broken: bool = False) -> Path:
    """Write a net that multiplies x [n, width] with the same matrix `layers` times; broken: it answers NaN."""
    import onnx  # noqa: PLC0415 (not needed by those that serve text alone)

    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "z" if broken else "y"]
    nodes: list[Any] = [
        onnx.helper.make_node("MatMul", [names[layer], "w"], [names[layer + 1]]) for layer in range(layers)
    ]
    if broken:
        nodes += [onnx.helper.make_node("Sub", ["z", "z"], ["o"]), onnx.helper.make_node("Div", ["o", "o"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [info("x", kind, ["n", width])],
        [info("y", kind, ["n", width])],
        [onnx.numpy_helper.from_array(weights(width), "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def language(folder: Path) -> None:
    """Write small.gguf (4 bits), full.gguf (16 bits) and garbage.gguf (4 bits, noise in each block)."""
    tersor.quantize(reference_model.PATH, "q4_k_m", output=folder / "small.gguf")
    tersor.quantize(reference_model.PATH, "f16", output=folder / "full.gguf")
    content = bytearray((folder / "small.gguf").read_bytes())
    file = GgufFile(folder / "small.gguf")
    for name in (name for name in file.tensors if name.endswith("ffn_down.weight")):
        data = file.read_bytes(name, 0, int(np.prod(file.tensors[name].shape[:-1]))).tobytes()
        at = content.find(data)
        content[at : at + len(data)] = np.random.default_rng(0).integers(0, 60, len(data), np.uint8).tobytes()
    file.close()
    (folder / "garbage.gguf").write_bytes(content)
