"""One peer quantizes one net, or every artefact runs in turn: started by benchmarks/int8_peers.py where peers are.

    python int8_engine.py make NAME JOB.json      NAME: onnxruntime, nncf, torchao
    python int8_engine.py race JOB.json

A job to make names the float ONNX file, the calibration inputs (.npy) and where the artefact goes; torchao is given
the program that torch exported. A job to race names artefacts with the engine of each, inputs, batches, rounds; it
prints one JSON object, milliseconds of every run, and writes what each answers on the test inputs. All else is each
peer's default.
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
    feeds = iter([{job["input"]: batch} for batch in _batches(job)])

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
    """pt2e for x86: what its converted graph answers, unlowered; its speed needs inductor and is not raced."""
    torch = module("torch")
    flow = module("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    rules = quantizer.X86InductorQuantizer().set_global(quantizer.get_default_x86_inductor_quantization_config())
    prepared = flow.prepare_pt2e(torch.export.load(job["program"]).module(), rules)
    with torch.no_grad():
        for batch in _batches(job):
            prepared(torch.from_numpy(batch))
        made = flow.convert_pt2e(prepared)
        found = [made(torch.from_numpy(batch)).numpy() for batch in _split(np.load(job["test"]), BATCH)]
    np.save(job["out"], np.concatenate(found))


def _batches(job: Job) -> Any:
    return _split(np.load(job["calibration"]), BATCH)


def _split(values: Any, size: int) -> Any:
    return (np.ascontiguousarray(values[at : at + size]) for at in range(0, len(values), size))


def in_onnxruntime(path: str, threads: int, batch: int) -> Runner:  # noqa: ARG001 (of all engines)
    """The CPU provider, as it comes."""
    library = module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})[0]


def in_openvino(path: str, threads: int, batch: int) -> Runner:
    """The CPU device, for latency."""
    library = module("openvino")
    core = library.Core()
    model = core.read_model(path)
    shape = [size.get_length() if size.is_static else None for size in model.inputs[0].partial_shape]
    model.reshape({model.inputs[0]: [batch, *shape[1:]]})
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(values: Any) -> Any:
        request.infer([values])
        return request.get_output_tensor(0).data.copy()

    return run


ENGINES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}
MAKERS = {"onnxruntime": onnxruntime, "nncf": nncf, "torchao": torchao}


def race(job: Job) -> dict[str, Any]:
    """Run every artefact in its engine: answers once, then rounds in turn for each batch size."""
    test = np.load(job["test"])
    times: dict[str, dict[str, list[float]]] = {}
    for size in job["batches"]:
        runners = {}
        for name, (engine, path) in job["artefacts"].items():
            runners[name] = ENGINES[engine](path, job["threads"], size)
            if size == job["batches"][0]:
                whole = [runners[name](piece) for piece in _split(test[: len(test) // size * size], size)]
                np.save(Path(job["answers"]) / f"{name}.npy", np.concatenate(whole))
        feed = np.ascontiguousarray(test[:size])
        for run in [*runners.values()] * 3:
            run(feed)
        found: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(job["rounds"]):
            for name, run in runners.items():
                before = time.perf_counter()
                run(feed)
                found[name].append(1e3 * (time.perf_counter() - before))
        times[str(size)] = found
    return {"times": times}


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
