"""The child process that holds one net in one engine and times it.

Started by `engines/child.py` with the arguments ENGINE PATH OPTIONS_JSON; the options are `threads`, `batch`, `length`
(of free axes), `seed`, `profile` (a folder: count what every kernel takes), and the settings of the engine. Inputs are
made here: floats are drawn at random, whole numbers are all 1.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.engines.frames import Ready, send, serve
from tersor.evaluation.nets.running.counters import openvino_rows, torch_rows, weights_of
from tersor.graph.net import Net
from tersor.graph.training.module import to_torch
from tersor.targets.processor import places

__all__ = ["main"]

Array: TypeAlias = npt.NDArray[Any]
Options: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class _Loaded:
    """A net ready to run.

    inputs   name, shape (None for a free axis) and type of each
    run      inputs by name → outputs in order
    version  of the engine
    profile  runs it so often on these inputs, and tells what was counted meanwhile: "path" of a file, or "rows"
    """

    inputs: list[tuple[str, list[int | None], str]]
    run: Callable[[Mapping[str, Array]], Sequence[Array]]
    version: str
    profile: Callable[[Mapping[str, Array], int], Options]


def _onnxruntime(path: str, options: Options) -> _Loaded:
    import onnxruntime  # noqa: PLC0415 - only ever in the child

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options["threads"]
    levels = onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if options.get("layout", True) else levels.ORT_ENABLE_EXTENDED
    )
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.get("spin", True) else "0")
    kept = _pinned(settings, options["threads"]) if options.get("pinning") else None
    if options.get("profile"):
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(options["profile"]) / "ort")
        settings.optimized_model_filepath = str(Path(options["profile"]) / "optimized.onnx")
        # Of more than 2 GB it cannot be one file, and the values are not wanted.
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    if kept is not None:
        os.sched_setaffinity(0, {kept})  # after the session: its threads would inherit this place
    names = [value.name for value in session.get_outputs()]
    inputs = [(value.name, _axes(value.shape), value.type) for value in session.get_inputs()]
    version = f"onnxruntime {onnxruntime.__version__}"

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        made: Sequence[Array] = session.run(names, dict(feeds))
        return made

    def profile(feeds: Mapping[str, Array], runs: int) -> Options:
        for _ in range(runs):
            run(feeds)
        return {"path": session.end_profiling(), "weights": weights_of(Path(options["profile"]) / "optimized.onnx")}

    return _Loaded(inputs, run, version, profile)


def _pinned(settings: Any, threads: int) -> int:
    """Have ONNX Runtime keep each thread of its own on one core; return the core of the thread that calls it.

    It numbers processors from 1, and leaves the calling thread to the program.
    """
    found = places(threads)
    if found is None:
        raise ValueError(f"{threads} threads cannot be pinned: this process may use fewer processors")
    if len(found) > 1:
        text = ";".join(str(number + 1) for number in found[1:])
        settings.add_session_config_entry("session.intra_op_thread_affinities", text)
    return found[0]


def _openvino(path: str, options: Options) -> _Loaded:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": bool(options.get("pinning", True)),
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 unasked, and give other numbers
        "PERF_COUNT": bool(options.get("profile")),
    }
    model = core.read_model(path)
    inputs = []
    for port in model.inputs:
        axes = [None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]
        inputs.append((port.any_name, axes, port.element_type.to_string()))
    shapes = {name: _sized(axes, options) for name, axes, _ in inputs}
    model.reshape({name: openvino.PartialShape(shape) for name, shape in shapes.items()})
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        found = request.infer(dict(feeds))
        return [found[port] for port in request.model_outputs]

    def profile(feeds: Mapping[str, Array], runs: int) -> Options:
        for _ in range(runs):
            run(feeds)
        return {"rows": openvino_rows(compiled)}

    return _Loaded(inputs, run, f"openvino {openvino.__version__.partition('-')[0]}", profile)


def _torch(path: str, options: Options) -> _Loaded:
    import torch  # noqa: PLC0415

    torch.set_num_threads(options["threads"])
    torch.set_grad_enabled(False)
    net = Net.open(Path(path))
    module = to_torch(net.model).eval()
    inputs = []
    for value in net.inputs:
        axes = [size if isinstance(size, int) else None for size in value.shape or ()]
        assert value.dtype is not None, "inputs of a checked model have a type"
        inputs.append((str(value.name), axes, str(value.dtype.numpy())))
    called: Any = module
    if options.get("compile"):
        import torch._inductor.config as inductor  # noqa: PLC0415

        inductor.freezing = True
        inductor.cpp.enable_kernel_profile = bool(options.get("profile"))
        called = torch.compile(module)

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        made = called(*(torch.from_numpy(feeds[name]) for name, _, _ in inputs))
        return [one.numpy() for one in (made if isinstance(made, tuple | list) else (made,))]

    def profile(feeds: Mapping[str, Array], runs: int) -> Options:
        return {"rows": torch_rows(lambda: run(feeds), runs)}

    return _Loaded(inputs, run, f"torch {torch.__version__}", profile)


_ENGINES = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}


def _axes(shape: Sequence[object]) -> list[int | None]:
    return [size if isinstance(size, int) and size > 0 else None for size in shape]


def _sized(axes: Sequence[int | None], options: Options) -> list[int]:
    """Return the shape with free axes filled in: the first is the batch."""
    free = [options["batch"] if place == 0 else options["length"] for place in range(len(axes))]
    return [size if size is not None else free[place] for place, size in enumerate(axes)]


def _feeds(loaded: _Loaded, options: Options) -> dict[str, Array]:
    random = np.random.default_rng(options["seed"])
    feeds: dict[str, Array] = {}
    for name, axes, kind in loaded.inputs:
        shape = _sized(axes, options)
        word = kind.lower().removeprefix("tensor(").removesuffix(")")
        if word in ("float", "f32", "float32"):
            feeds[name] = random.standard_normal(shape, dtype=np.float32)
        elif word in ("float16", "f16"):
            feeds[name] = random.standard_normal(shape, dtype=np.float32).astype(np.float16)
        elif word in ("double", "f64", "float64"):
            feeds[name] = random.standard_normal(shape)
        else:
            names = {"i64": "int64", "i32": "int32", "u8": "uint8", "i8": "int8", "boolean": "bool"}
            feeds[name] = np.ones(shape, names.get(word, word))
    return feeds


class _Stage:
    """The net, what it is fed, and the operations on it."""

    def __init__(self, engine: str, path: str, options: Options) -> None:
        began = perf_counter()
        self.loaded = _ENGINES[engine](path, options)
        self.load_s = perf_counter() - began
        self.feeds = _feeds(self.loaded, options)
        self.output: Sequence[Array] = self.loaded.run(self.feeds)

    def facts(self) -> dict[str, Any]:
        """The greeting."""
        return {
            "load_s": self.load_s,
            "version": self.loaded.version,
            "inputs": {name: list(value.shape) for name, value in self.feeds.items()},
            "values": int(sum(np.size(one) for one in self.output)),
        }

    def time(self, request: Options, _pipe: BinaryIO) -> Options:
        """Run `repeats` times: nanoseconds of each, by the clock on the wall or by that of the processor."""
        clock = process_time_ns if request["clock"] == "processor" else perf_counter_ns
        times = []
        for _ in range(request["repeats"]):
            began = clock()
            self.loaded.run(self.feeds)
            times.append(clock() - began)
        return {"ns": times}

    def show(self, _request: Options, pipe: BinaryIO) -> Options:
        """Send all outputs as floats, one after another."""
        flat = np.concatenate([np.asarray(one, np.float32).ravel() for one in self.output])
        send(pipe, {"floats": int(flat.size)})
        pipe.write(np.ascontiguousarray(flat, "<f4").tobytes())
        return {}

    def profile(self, request: Options, _pipe: BinaryIO) -> Options:
        """Run `repeats` times, and tell what was counted; it was loaded for that."""
        return self.loaded.profile(self.feeds, request["repeats"])


_OPERATIONS = {"time": _Stage.time, "show": _Stage.show, "profile": _Stage.profile}


def main() -> None:
    """Load the net, then answer requests until stdin closes."""
    engine, path, options = sys.argv[1:4]

    def load(output: BinaryIO) -> Ready:
        stage = _Stage(engine, path, json.loads(options))
        return stage.facts(), lambda request: _OPERATIONS[request["operation"]](stage, request, output)

    serve(load, refusal=lambda error: " ".join(str(error).split())[:400])
    os._exit(0)
