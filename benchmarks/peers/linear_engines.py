"""One quantized linear layer in every engine that can run it here: copies of a matrix, multiplied one after another.

Copies are so many that no cache holds them all. Every engine is given float32 or bfloat16 activations and gives such
back: rounding them is part of the work. Weights are rounded by each engine's own rule.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from ggml_linear import GgmlLinear
from onnx import TensorProto, helper, numpy_helper

from tersor.core.arrays import Bytes, Float32
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.groups import unpack_groups
from tersor.kernels.codec import native
from tersor.kernels.linear.arena import Arena
from tersor.kernels.linear.module import quantized_linear
from tersor.kernels.linear.weights import pack_weight
from tersor.kernels.reference.linear import Digits

TORCHAO = "torchao==0.18.0"
GROUP = 128


@dataclass(frozen=True)
class Problem:
    """A layer and its inputs.

    weight   float32 [rows, columns]
    x        float32 [tokens, columns]
    copies   of the weight
    """

    weight: Float32
    x: Float32
    copies: int
    threads: int


@dataclass(frozen=True)
class Entry:
    """An engine with the layer in it.

    nbytes  of one copy of the weight: codes, scales and zero points
    run     multiplies by every copy
    result  of the last product, float32 [tokens, rows]
    """

    name: str
    nbytes: int
    run: Callable[[], object]
    result: Callable[[], Float32]


def ours(problem: Problem, spelled: str, digits: Digits, isa: str = "") -> Entry:
    """Integers in groups, scales in binary16, by QuantizedLinear; `isa`: another instruction set than the best."""
    fmt = get(spelled)
    bits = int(fmt.bits)
    tensor = QuantizedTensor(fmt, problem.weight.shape, fmt.encode(problem.weight))
    groups = unpack_groups(tensor, 0, len(problem.weight))
    arrays = [torch.from_numpy(array) for array in (groups.codes, groups.zeros, groups.scales)]
    arena = Arena()
    packed = [pack_weight(*arrays, bits=bits, real="f16", arena=arena) for _ in range(problem.copies)]
    modules = [quantized_linear(weight, digits=digits) for weight in packed]
    x = torch.from_numpy(problem.x)
    name = f"tersor {spelled.removesuffix('-sym-f16')}, int{8 * digits} activations{isa and f', {isa}'}"

    def run(some: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
        with _instructions(isa):
            return [module(x) for module in some]

    def result() -> Float32:
        made: Float32 = run(modules[:1])[0].numpy()
        return made

    return Entry(name, packed[0].nbytes, lambda: run(modules), result)


@contextlib.contextmanager
def _instructions(isa: str) -> Iterator[None]:
    """Compute by another instruction set than the best, where one is named."""
    if not isa:
        yield
        return
    module: Any = native()
    best = module.isa()
    module.set_isa(isa)
    try:
        yield
    finally:
        module.set_isa(best)


def _torch_entry(name: str, nbytes: int, copies: Sequence[Any], call: Callable[[Any], torch.Tensor]) -> Entry:
    """What one of torch's operators makes of every copy."""
    return Entry(name, nbytes, lambda: [call(copy) for copy in copies], lambda: call(copies[0]).float().numpy())


def torch_float(problem: Problem, dtype: torch.dtype) -> Entry:
    """torch.nn.functional.linear."""
    x = torch.from_numpy(problem.x).to(dtype)
    weights = [torch.from_numpy(problem.weight).to(dtype, copy=True) for _ in range(problem.copies)]
    name = f"torch {str(dtype).removeprefix('torch.')}"
    return _torch_entry(name, weights[0].nbytes, weights, lambda w: torch.nn.functional.linear(x, w))


def torch_int4pack(problem: Problem) -> Entry:
    """_weight_int4pack_mm_for_cpu: bfloat16 activations, (code - 8)·scale + zero, groups of 128."""
    w = torch.from_numpy(problem.weight)
    rows, columns = w.shape
    groups = w.reshape(rows, -1, GROUP)
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-6)
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).reshape(rows, columns)
    sides = torch.stack([scale, low + 8 * scale], 2).transpose(0, 1).contiguous().to(torch.bfloat16)
    x = torch.from_numpy(problem.x).to(torch.bfloat16)
    copies = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2) for _ in range(problem.copies)]
    nbytes, multiply = copies[0].nbytes + sides.nbytes, torch.ops.aten._weight_int4pack_mm_for_cpu
    return _torch_entry("torch _weight_int4pack_mm_for_cpu", nbytes, copies, lambda w: multiply(x, w, GROUP, sides))


def torch_int8pack(problem: Problem) -> Entry:
    """_weight_int8pack_mm: bfloat16 activations, a scale a row."""
    w = torch.from_numpy(problem.weight)
    scale = w.abs().amax(1) / 127
    copies = [(w / scale[:, None]).round().to(torch.int8) for _ in range(problem.copies)]
    x, half = torch.from_numpy(problem.x).to(torch.bfloat16), scale.to(torch.bfloat16)
    nbytes, multiply = copies[0].nbytes + half.nbytes, torch.ops.aten._weight_int8pack_mm
    return _torch_entry("torch _weight_int8pack_mm", nbytes, copies, lambda w: multiply(x, w, half))


def torch_dynamic(problem: Problem, engine: str) -> Entry:
    """quantized::linear_dynamic of one of torch's engines: activations uint8, a scale for all."""
    torch.backends.quantized.engine = engine
    w = torch.from_numpy(problem.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and the fastest int8 that torch has
        zeros = torch.zeros(len(w), dtype=torch.long)
        quantized = torch.quantize_per_channel(w, w.abs().amax(1) / 127, zeros, 0, torch.qint8)
    copies = [torch.ops.quantized.linear_prepack(quantized, None) for _ in range(problem.copies)]
    x = torch.from_numpy(problem.x)
    nbytes, multiply = w.numel() + 4 * len(w), torch.ops.quantized.linear_dynamic
    return _torch_entry(f"torch linear_dynamic, {engine}", nbytes, copies, lambda packed: multiply(x, packed))


def torchao_int8(problem: Problem, folder: Path) -> Entry:
    """torchao's Int8DynamicActivationInt8WeightConfig, eager."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    torchao: Any = importlib.import_module("torchao.quantization")
    modules = []
    for _ in range(problem.copies):
        module = torch.nn.Sequential(torch.nn.Linear(problem.weight.shape[1], len(problem.weight), bias=False))
        module[0].weight.data = torch.from_numpy(problem.weight).clone()
        torchao.quantize_(module, torchao.Int8DynamicActivationInt8WeightConfig())
        modules.append(module)
    x = torch.from_numpy(problem.x)
    nbytes = problem.weight.size + 4 * len(problem.weight)
    return _torch_entry("torchao int8 dynamic", nbytes, modules, lambda module: module(x).detach())


def _session(problem: Problem, nodes: list[Any], weights: list[Any], name: str, nbytes: int) -> Entry:
    """All copies in one graph of ONNX Runtime, each with an output of its own; turned round, or it keeps but one."""
    tokens, (rows, columns) = len(problem.x), problem.weight.shape
    value = helper.make_tensor_value_info
    outputs = [value(f"y{copy}", TensorProto.FLOAT, [tokens, rows]) for copy in range(problem.copies)]
    graph = helper.make_graph(nodes, "layers", [value("x", TensorProto.FLOAT, [tokens, columns])], outputs, weights)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or it slows down the next engine
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": problem.x}
    return Entry(name, nbytes, lambda: session.run(None, feed), lambda: session.run(["y0"], feed)[0])


def ort_int4(problem: Problem, accuracy: int) -> Entry:
    """MatMulNBits: groups of 128, float32 scales; accuracy level 4 rounds activations to int8, 0 does not."""
    rows, columns = problem.weight.shape
    groups = problem.weight.reshape(rows, -1, GROUP)
    scale = (np.abs(groups).max(2) / 7.5).astype(np.float32)
    codes = np.clip(np.rint(groups / scale[..., None]) + 8, 0, 15).astype(np.uint8)
    packed: Bytes = codes[..., ::2] | codes[..., 1::2] << 4
    nodes, weights = [], []
    for copy in range(problem.copies):
        weights += [
            numpy_helper.from_array(np.roll(packed, copy, 0), f"w{copy}"),
            numpy_helper.from_array(scale.reshape(-1), f"s{copy}"),
        ]
        settings = {"K": columns, "N": rows, "bits": 4, "block_size": GROUP, "accuracy_level": accuracy}
        domain = {"domain": "com.microsoft"}
        nodes.append(helper.make_node("MatMulNBits", ["x", f"w{copy}", f"s{copy}"], [f"y{copy}"], **domain, **settings))
    return _session(
        problem, nodes, weights, f"ONNX Runtime MatMulNBits, accuracy {accuracy}", packed.nbytes + scale.nbytes
    )


def ort_int8(problem: Problem) -> Entry:
    """DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses: activations uint8, a scale for all."""
    weight = problem.weight
    scale = (np.abs(weight).max(1) / 127).astype(np.float32)
    codes = np.ascontiguousarray(np.rint(weight / scale[:, None]).astype(np.int8).T)
    zero = numpy_helper.from_array(np.zeros(len(weight), np.int8), "zero")
    nodes, weights = [], [zero, numpy_helper.from_array(scale, "scale")]
    for copy in range(problem.copies):
        weights.append(numpy_helper.from_array(np.roll(codes, copy, 1), f"w{copy}"))
        steps = (
            ("DynamicQuantizeLinear", ["x"], [f"q{copy}", f"step{copy}", f"middle{copy}"]),
            ("MatMulInteger", [f"q{copy}", f"w{copy}", f"middle{copy}", "zero"], [f"i{copy}"]),
            ("Cast", [f"i{copy}"], [f"f{copy}"]),
            ("Mul", [f"step{copy}", "scale"], [f"both{copy}"]),
            ("Mul", [f"f{copy}", f"both{copy}"], [f"y{copy}"]),
        )
        for kind, inputs, outputs in steps:
            nodes.append(
                helper.make_node(kind, inputs, outputs, **({"to": TensorProto.FLOAT} if kind == "Cast" else {}))
            )
    return _session(problem, nodes, weights, "ONNX Runtime MatMulInteger", codes.nbytes + scale.nbytes)


def ggml(problem: Problem, name: str) -> Entry:
    """ggml (llama.cpp): activations in blocks of 32 int8."""
    packed = get(name).encode(problem.weight)
    layer = GgmlLinear(
        name, packed, problem.weight.shape[1], len(problem.x), copies=problem.copies, threads=problem.threads
    )
    layer.feed(problem.x)

    def result() -> Float32:
        layer.run()
        return layer.result()

    return Entry(f"llama.cpp {name.upper()}{', repacked' if layer.repacked else ''}", packed.nbytes, layer.run, result)
