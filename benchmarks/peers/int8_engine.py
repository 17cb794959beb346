"""One peer quantizes one net, or every artefact runs in turn: started by benchmarks/int8_peers.py where peers are.

    python int8_engine.py make NAME JOB.json      NAME: onnxruntime, nncf, torchao
    python int8_engine.py race JOB.json

A job to make names the float ONNX file, the calibration inputs (an .npz, by the names of inputs) and where the artefact
goes; torchao is given the programs that torch exported, one a batch size, as NAME-SIZE.pt2. A job to race names
artefacts with the engine of each, inputs, batches, rounds; it prints one JSON object, milliseconds of every run and
what an engine refused, and writes what each answers on the test inputs. All else is each peer's default.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Job: TypeAlias = dict[str, Any]
Runner: TypeAlias = Callable[[Any], Any]
module = importlib.import_module
BATCH = 8


def onnxruntime(job: Job) -> None:
    """quantize_static: QDQ, per channel, unsigned activations, min-max; its own preparation first."""
    library = module("onnxruntime.quantization")
    prepare = module("onnxruntime.quantization.shape_inference").quant_pre_process
    feeds = iter(_batches(job))

    class Reader(library.CalibrationDataReader):  # type: ignore[misc,name-defined]  # no types
        def get_next(self) -> Any:
            return next(feeds, None)

    prepared = Path(job["out"]).with_suffix(".pre.onnx")
    prepare(job["model"], str(prepared))
    library.quantize_static(
        str(prepared),
        job["out"],
        Reader(),
        quant_format=library.QuantFormat.QDQ,
        per_channel=True,
        activation_type=library.QuantType.QUInt8,
        weight_type=library.QuantType.QInt8,
    )


def nncf(job: Job) -> None:
    """quantize, with its handling of transformers where the net is one."""
    library, openvino = module("nncf"), module("openvino")
    model = openvino.Core().read_model(job["model"])
    data = library.Dataset(list(_batches(job)))
    kind = library.ModelType.TRANSFORMER if job["transformer"] else None
    made = library.quantize(model, data, model_type=kind)
    openvino.save_model(made, job["out"], compress_to_fp16=False)


def torchao(job: Job) -> None:
    """pt2e for x86, for each batch size: the converted graph, for inductor to lower."""
    torch = module("torch")
    flow = module("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    rules = quantizer.X86InductorQuantizer().set_global(quantizer.get_default_x86_inductor_quantization_config())
    for size in job["batches"]:
        prepared = flow.prepare_pt2e(torch.export.load(_sized(job["program"], size)).module(), rules)
        with torch.no_grad():
            tensors = [tuple(map(torch.from_numpy, batch.values())) for batch in _batches(job, size)]
            for given in tensors:
                prepared(*given)
            made = flow.convert_pt2e(prepared)
            torch.export.save(torch.export.export(made, tensors[0]), _sized(job["out"], size))


def _sized(path: str, size: int) -> Path:
    return Path(path).with_name(f"{Path(path).stem}-{size}.pt2")


def _batches(job: Job, size: int = BATCH) -> list[Any]:
    return _split(job["calibration"], size)


def _split(path: str, size: int) -> list[Any]:
    """Return whole batches, by the names of inputs."""
    arrays = dict(np.load(path))
    count = len(next(iter(arrays.values()))) // size * size
    return [
        {name: np.ascontiguousarray(values[at : at + size]) for name, values in arrays.items()}
        for at in range(0, count, size)
    ]


def in_onnxruntime(path: str, threads: int, batch: int) -> Runner:  # noqa: ARG001 (of all engines)
    """The CPU provider, as it comes."""
    library = module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def in_openvino(path: str, threads: int, batch: int) -> Runner:
    """The CPU device, for latency."""
    library = module("openvino")
    core = library.Core()
    model = core.read_model(path)
    for entry in model.inputs:
        rest = [size.get_length() if size.is_static else -1 for size in entry.partial_shape][1:]
        model.reshape({entry: [batch, *rest]})
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(feeds: Any) -> Any:
        request.infer(feeds)
        return request.get_output_tensor(0).data.copy()

    return run


def in_inductor(path: str, threads: int, batch: int) -> Runner:
    """torch.compile with constants frozen, which is when inductor looks for integer kernels."""
    torch: Any = module("torch")
    config: Any = module("torch._inductor.config")
    module("torch.ao.quantization.fx._decomposed")  # registers what programs on integers call
    torch.set_num_threads(threads)
    config.freezing = True
    made = torch.compile(torch.export.load(_sized(path, batch)).module())

    def run(feeds: Any) -> Any:
        with torch.no_grad():
            return made(*map(torch.from_numpy, feeds.values())).numpy()

    return run


ENGINES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino, "inductor": in_inductor}
MAKERS = {"onnxruntime": onnxruntime, "nncf": nncf, "torchao": torchao}


def race(job: Job) -> dict[str, Any]:
    """Run every artefact in its engine: answers once, then rounds in turn for each batch size."""
    times: dict[str, dict[str, list[float]]] = {}
    refused: dict[str, str] = {}
    for size in job["batches"]:
        batches, runners = _split(job["test"], size), {}
        for name, (engine, path) in job["artefacts"].items():
            try:
                run = ENGINES[engine](path, job["threads"], size)
                whole = [run(piece) for piece in (batches if size == job["batches"][0] else batches[:1])]
            except Exception as error:  # engines share no base
                refused[name] = " ".join(str(error).split())[:200]
                continue
            runners[name] = run
            if size == job["batches"][0]:
                np.save(Path(job["answers"]) / f"{name}.npy", np.concatenate(whole))
        feed = batches[0]
        for run in [*runners.values()] * 3:
            run(feed)
        found: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(job["rounds"]):
            for name, run in runners.items():
                run(feed)  # not timed: caches and threads are another's
                before = time.perf_counter()
                run(feed)
                found[name].append(1e3 * (time.perf_counter() - before))
        times[str(size)] = found
    return {
        "times": {
            size: {name: row for name, row in found.items() if name not in refused} for size, found in times.items()
        },
        "refused": refused,
    }


def main() -> None:
    """Do what is asked for and print a JSON object last."""
    action, *rest = sys.argv[1:]
    job: Job = json.loads(Path(rest[-1]).read_text(encoding="utf-8"))
    if action == "make":
        MAKERS[rest[0]](job)
        found: dict[str, Any] = {}
    else:
        found = race(job)
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
