"""tersor or one peer quantizes one model or one matrix: run by benchmarks/peers_gptq.py where that one is installed.

    python gptq_engine.py NAME JOB.json

A job for a model names its folder, the token ids to calibrate on and the text that tersor finds the very same ids in;
one for a matrix names the arrays of weight and Hessian. `out` of a job is what gets written: a folder that holds the
model, as values or as it is packed, or the values of the matrix. The last line on stdout is a JSON object: CPU and wall
seconds and the peak of resident memory, all above what the imports took, and versions. Groups of 128, symmetric, one
thread; other settings are each one's own. Of tersor nothing is imported unless it is the one that is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # GPTQModel 7.4 stops on machines of one or two cores without it

import numpy as np
import torch
from torchvision_stand_in import stand_in

GROUP = 128
BATCH = 8
STEPS = 200
TOKENS = 1 << 16
"""That GPTQModel is told to have seen: it falls back to rounding where they are few."""

Job: TypeAlias = dict[str, Any]
Work: TypeAlias = Callable[[], None]
module = importlib.import_module


def tersor(job: Job) -> Work:
    """`tersor quantize --container gptq`, without its command line."""
    module("tokenizers")  # the peers import it with transformers
    models, quantize, run = (
        module(f"tersor.{name}") for name in ("models", "pipeline.calibrated.quantize", "pipeline.calibrated.run")
    )

    def work() -> None:
        shape = {"sequences": len(job["ids"]), "length": len(job["ids"][0])}
        text = run.Calibration(source=Path(job["text"]), seed=job["seed"], **shape)
        how = quantize.How(
            method=job["method"], calibration=text, container="gptq", proof=job["proof"], force=True, threads=1
        )
        card = quantize.quantize_calibrated(models.load(job["model"]), f"int{job['bits']}-g128", Path(job["out"]), how)
        print("\n".join(card.notes), file=sys.stderr)

    return work


def llm_compressor(job: Job) -> Work:
    """GPTQ with its static order, or AWQ without clipping."""
    transformers, datasets = module("transformers"), module("datasets")
    module("transformers.models.llama.modeling_llama")  # found when a model is loaded otherwise
    oneshot = module("llmcompressor").oneshot
    schemes = module("compressed_tensors.quantization")
    weights = schemes.QuantizationArgs(num_bits=job["bits"], group_size=GROUP, strategy="group", symmetric=True)
    groups = {"group_0": schemes.QuantizationScheme(targets=["Linear"], weights=weights)}
    recipe: list[Any]
    if job["method"] == "awq":
        torch.Tensor.pin_memory = _unpinned  # type: ignore[assignment,method-assign]
        rounding = module("llmcompressor.modifiers.quantization").QuantizationModifier
        recipe = [module("llmcompressor.modifiers.transform.awq").AWQModifier()]
        recipe.append(rounding(config_groups=groups, ignore=["lm_head"]))
    else:
        recipe = [module("llmcompressor.modifiers.gptq").GPTQModifier(config_groups=groups, ignore=["lm_head"])]

    def work() -> None:
        ids = job["ids"]
        model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        oneshot(
            model=model,
            dataset=datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": np.ones_like(ids).tolist()}),
            recipe=recipe,
            max_seq_length=len(ids[0]),
            num_calibration_samples=len(ids),
            batch_size=BATCH,
            shuffle_calibration_samples=False,
        )
        save_values(model, job)

    return work


def _unpinned(tensor: torch.Tensor, *_: object) -> torch.Tensor:
    """llm-compressor's offloading asks for an accelerator that is not there."""
    return tensor


def gptqmodel(job: Job) -> Work:
    """GPTQ with its own order inside groups and of groups."""
    library = _gptqmodel()

    def work() -> None:
        plan = library.QuantizeConfig(bits=job["bits"], group_size=GROUP, sym=True)
        model = library.GPTQModel.load(job["model"], plan, dtype=torch.float32)
        model.quantize(rows_of(job), batch_size=BATCH)
        model.save(job["out"])

    return work


def _gptqmodel() -> Any:
    stand_in()
    return module("gptqmodel")


def auto_round(job: Job) -> Work:
    """Learned rounding, with as many steps a block as its documentation starts from."""
    transformers, rounder = module("transformers"), module("auto_round").AutoRound
    module("transformers.models.llama.modeling_llama")

    def work() -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        tuner = rounder(
            model,
            transformers.AutoTokenizer.from_pretrained(job["model"]),
            bits=job["bits"],
            group_size=GROUP,
            sym=True,
            iters=STEPS,
            dataset=rows_of(job),
            seqlen=len(job["ids"][0]),
            nsamples=len(job["ids"]),
            batch_size=BATCH,
            amp=False,
            enable_torch_compile=False,
            device_map="cpu",
        )
        made = tuner.quantize()
        save_values(made[0] if isinstance(made, tuple) else made, job)

    return work


def rows_of(job: Job) -> list[dict[str, torch.Tensor]]:
    """Return the token ids as the peers take them."""
    return [
        {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        for row in job["ids"]
    ]


def save_values(model: Any, job: Job) -> None:
    """Write the values that the quantized weights have, float32, as a checkpoint that is not quantized."""
    source, out = Path(job["model"]), Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    linear = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    values = {
        name: _rounded(model, name, value.detach()).float().clone().contiguous()
        for name, value in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
        and (name.rpartition(".")[0] in linear or "norm" in name or "embed" in name)
        and name.endswith("weight")
    }
    module("safetensors.torch").save_file(values, out / "model.safetensors", metadata={"format": "pt"})
    for file in source.glob("*.json"):
        if "index" not in file.name:
            (out / file.name).write_bytes(file.read_bytes())


def _rounded(model: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """Round to the grid that llm-compressor leaves beside a weight; its AWQ does not do so itself."""
    owner = model.get_submodule(name.rpartition(".")[0])
    scheme = getattr(owner, "quantization_scheme", None)
    if scheme is None or not name.endswith(".weight"):
        return value
    rounded: torch.Tensor = module("compressed_tensors.quantization").fake_quantize(
        value, owner.weight_scale, owner.weight_zero_point, scheme.weights
    )
    return rounded.detach()


def tersor_layer(job: Job) -> Work:
    """A row of METHODS; it ends with packed rows, the peers' solvers with values that they pack later."""
    method = module("tersor.methods").METHODS[job["method"]]
    fmt = module("tersor.formats").get(f"int{job['bits']}-g128")

    def work() -> None:
        weight, hessian = (torch.from_numpy(job[name]) for name in ("weight", "hessian"))
        known = {"hessian": hessian} if method.needs else {"importance": hessian.diagonal()}
        job["made"] = method.function(weight, fmt, **known, threads=1)

    return work


def llm_compressor_layer(job: Job) -> Work:
    """Its observer of weights, then its `quantize_weight`, as its GPTQModifier calls them."""
    quantize = module("llmcompressor.modifiers.gptq.gptq_quantize").quantize_weight
    schemes, observers = module("compressed_tensors.quantization"), module("llmcompressor.observers")
    settings = {"num_bits": job["bits"], "group_size": GROUP, "strategy": "group", "symmetric": True}
    args = schemes.QuantizationArgs(**settings, actorder="static")
    observer = observers.Observer.load_from_registry("memoryless_minmax", base_name="weight", args=args)

    def work() -> None:
        weight, hessian = (torch.from_numpy(job[name]) for name in ("weight", "hessian"))
        with torch.no_grad():
            found = observer(weight).get_qparams()
            values, _, fell_back = quantize(
                weights=weight[None].clone(),
                hessians=hessian[None].clone(),
                scale=found["scale"][None],
                zero_point=found["zero_point"][None],
                global_scale=None,
                quant_args=args,
            )
        if bool(fell_back.any()):
            raise ArithmeticError("it fell back to rounding")
        job["values"] = values[0].numpy()

    return work


def gptqmodel_layer(job: Job) -> Work:
    """Its `GPTQ` object with the Hessian put where its own accumulation leaves it."""
    library, solver = _gptqmodel(), module("gptqmodel.quantization.gptq").GPTQ
    rows, columns = job["weight"].shape
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = torch.from_numpy(job["weight"])

    def work() -> None:
        task = solver(linear, library.QuantizeConfig(bits=job["bits"], group_size=GROUP, sym=True))
        task.quantizer.configure(perchannel=True)
        task.H = torch.from_numpy(job["hessian"]).clone()  # its own: the solver writes into it
        task.nsamples = task.expected_nsamples = TOKENS
        job["values"] = task.quantize()[0].detach().numpy()

    return work


MODELS = {
    "tersor": tersor,
    "llm-compressor": llm_compressor,
    "GPTQModel": gptqmodel,
    "auto-round": auto_round,
}
LAYERS = {"tersor": tersor_layer, "llm-compressor": llm_compressor_layer, "GPTQModel": gptqmodel_layer}
PACKAGES = ("tersor", "llmcompressor", "compressed-tensors", "gptqmodel", "auto-round", "torch", "transformers")


def versions() -> dict[str, str]:
    """Return the versions of what is installed here."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def status(key: str) -> int:
    """Bytes of this process by the system's name: VmRSS now, VmHWM at the most."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def cpu_seconds() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measured(work: Work) -> dict[str, float]:
    """Return what the work took above what is there already."""
    torch.linalg.cholesky(torch.eye(64) + torch.ones(64, 64) @ torch.ones(64, 64))  # loads the libraries below torch
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    before, cpu, wall = status("VmRSS"), cpu_seconds(), time.perf_counter()
    work()
    took = {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}
    return {**took, "peak_bytes": status("VmHWM") - before}


def main() -> None:
    """Do the job and print what it took."""
    name, path = sys.argv[1:]
    job: Job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    is_layer = "weight" in job
    if is_layer:
        job |= {array: np.load(job[array]) for array in ("weight", "hessian")}
    found: dict[str, Any] = dict(measured((LAYERS if is_layer else MODELS)[name](job)))
    if is_layer:
        np.save(job["out"], job["values"] if "values" in job else job["made"].dequantize())
    print("\n" + json.dumps({**found, "versions": versions()}), flush=True)
    os._exit(0)  # engines keep threads that would wait


if __name__ == "__main__":
    main()
