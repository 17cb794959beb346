"""Estimate what a language model needs and can reach at most on a machine, without reading a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tersor.containers.mixture_rules import FILE_TYPES
from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.evaluation.estimates.estimate import Estimate, Load, estimated
from tersor.evaluation.estimates.limits import Machine, machine_here, machine_of
from tersor.evaluation.estimates.repacking import repacked_bytes
from tersor.evaluation.estimates.shape import shape_of
from tersor.evaluation.speed.traffic import Weight, weigh
from tersor.formats import FORMATS, get
from tersor.models.model import Model, ModelTensor, kind_of
from tersor.models.outline import look
from tersor.pipeline.steps.planning import make_plan
from tersor.pipeline.steps.stored import stored_bytes
from tersor.targets.memory import machine_bytes
from tersor.targets.processor import busy_cores, is_busy, processor
from tersor.targets.profiles.profile import DTYPES
from tersor.targets.profiles.table import profile
from tersor.targets.roofs import measure_roofs

__all__ = ["HERE", "estimate"]

HERE = "here"
"""The target that stands for this machine, whose roofs are measured."""
_KEPT = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Weights in some format: the tensors, and its name for people."""

    name: str
    weights: tuple[Weight, ...]


def estimate(
    model: str | Path,
    *,
    target: str | Machine = HERE,
    format: str | None = None,  # noqa: A002 (the word of the command line)
    context: int = 4096,
    prompt: int = 512,
    batch: int = 1,
    chunk: int = 512,
    cache_format: str = "f16",
    compute: str | None = None,
    machines: int = 1,
    threads: int = 0,
) -> Estimate:
    """Return memory and the bounds of speed of `model` on a machine.

    model         a GGUF, a folder of Hugging Face form (its config.json is enough), or a hub id
    target        a profile (`tersor estimate --list`), or "here": this machine, whose roofs are measured in a second;
                  or a machine of your own
    format        file type of llama.cpp or a number format for all matrices of the blocks; None: as it is stored
    context       tokens that each sequence grows to
    prompt        tokens of a prompt; `chunk` of them are evaluated together
    batch         sequences side by side
    cache_format  number format of keys and values
    compute       type that matrices are multiplied in; None: what engines take for such weights on such a machine
    machines      how many share the model
    threads       of the measurement here, and of that alone; 0: every physical core

    Raises MissingError, FormatError and UnsupportedError for models, SchemeError for options.
    """
    if machines < 1:
        raise SchemeError(f"machines must be 1 or more, got {machines}")
    if compute is not None and compute not in DTYPES:
        raise SchemeError(f"matrices are multiplied in {', '.join(DTYPES)}, not {compute!r:.40}")
    known = _known(target, threads)
    source = look(model)
    machine = (known or _measured(threads)).times(machines)
    stored = _weights(source, format)
    metadata = {key: entry.value for key, entry in source.metadata.items()}
    traffic = weigh(stored.weights, {"general.architecture": source.architecture, **metadata}, 0)
    asked = Load(
        context,
        prompt,
        batch,
        chunk,
        get(cache_format).bits_per_weight,
        4 if machine.kind in ("cpu", "board", "phone") else 2,
        compute or _computed(stored, machine, is_integer=traffic.is_integer),
    )
    rows = next((tensor.rows for tensor in source.tensors if tensor.kind == "token_embd"), 0)
    total = sum(weight.nbytes for weight in stored.weights)
    shape = shape_of(source.architecture, metadata, rows)
    packed = repacked_bytes(stored.weights, machine.packs)
    return estimated(
        source.name, stored.name, traffic, total, shape=shape, load=asked, machine=machine, repacked=packed
    )


def _known(target: str | Machine, threads: int) -> Machine | None:
    """Return a machine that nothing has to be measured of; None for this one."""
    if target == HERE:
        return None
    if threads:
        raise SchemeError("threads are those of a measurement here: nothing is measured of another machine")
    return target if isinstance(target, Machine) else machine_of(profile(target))


def _measured(threads: int) -> Machine:
    """Return this machine, whose rates are measured."""
    here, load = processor(), busy_cores()
    found = machine_here(here.name, measure_roofs(threads or here.physical), machine_bytes(), here.flags)
    if is_busy(load):
        note = f"{load:.1f} cores' worth of other work ran while its rates were measured: by itself it does more"
        found = replace(found, notes=(*found.notes, note))
    return found


def _weights(model: Model, name: str | None) -> _Stored:
    if name is None:
        sizes = zip(model.tensors, stored_bytes(model), strict=True)
        rows = tuple(Weight(tensor.name, tensor.shape, nbytes, tensor.source_dtype) for tensor, nbytes in sizes)
        held: Counter[str] = Counter()
        for row in rows:
            held[row.label] += int(row.nbytes)
        return _Stored(f"as stored, mostly {held.most_common(1)[0][0]}", rows)
    if name.lower() in FILE_TYPES:
        plan = make_plan(model, name)
        planned = (Weight(t.name, t.shape, t.nbytes, FORMATS[t.format].name.upper()) for t in plan.tensors)
        return _Stored(plan.recipe.format, tuple(planned))
    fmt = get(name)
    return _Stored(fmt.name, tuple(_converted(tensor, fmt) for tensor in model.tensors))


def _converted(tensor: ModelTensor, fmt: Format) -> Weight:
    """Return a tensor as checkpoint containers store it: matrices of blocks in `fmt`, all else in 16 bits."""
    kind = kind_of(tensor.name)
    is_matrix = len(tensor.shape) > 1 and not tensor.must_be_f32 and kind not in ("token_embd", "output")
    if is_matrix and fmt.holds(tensor.columns):
        return Weight(tensor.name, tensor.shape, tensor.rows * fmt.row_bytes(tensor.columns), fmt.name.upper())
    label = tensor.source_dtype if tensor.source_dtype in ("BF16", "F16") else "F16"
    return Weight(tensor.name, tensor.shape, math.prod(tensor.shape) * _KEPT[label], label)


def _computed(stored: _Stored, machine: Machine, *, is_integer: bool) -> str:
    """Return the type that engines multiply in: int8 on processors, on GPUs what weights are decoded to."""
    if machine.kind != "gpu":
        return "int8" if is_integer else "float32"
    wanted: Callable[[str], bool] = machine.peaks.__contains__
    if stored.name.startswith("fp8") and wanted("float8"):
        return "float8"
    if stored.name in ("nvfp4", "mxfp4") and wanted("float4"):
        return "float4"
    return "bfloat16" if wanted("bfloat16") else "float16"
