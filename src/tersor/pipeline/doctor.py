"""What this machine and installation can do, and what to install for the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from tersor import __version__, reference_model
from tersor.containers.gguf import write_gguf
from tersor.core.errors import EngineError, MissingError, TersorError
from tersor.core.metadata import MetadataEntry
from tersor.engines.llama_cpp import SUPPORTED, LlamaCpp
from tersor.kernels import codec
from tersor.models import load
from tersor.targets.graphics import graphics
from tersor.targets.memory import available_bytes, machine_bytes
from tersor.targets.processor import Processor, processor
from tersor.targets.profiles.detecting import profile_of, profile_of_graphics
from tersor.targets.profiles.profile import Profile
from tersor.targets.roofs import Roofs, measure_roofs

__all__ = ["Diagnosis", "Finding", "doctor"]

State = Literal["ok", "absent", "broken"]

PACKAGES = (
    ("torch", "torch", "calibration, plans, training, nets from PyTorch, reference kernels"),
    ("transformers", "torch", "logits parity in `tersor verify`, quantized checkpoints"),
    ("tokenizers", "torch", "token parity in `tersor verify`"),
    ("safetensors", "torch", "what transformers reads models with"),
    ("xllamacpp", "llama", "running a GGUF in llama.cpp"),
    ("lm_eval", "lm-eval", "tasks of lm-evaluation-harness"),
    ("onnx", "onnx", "nets with quantized activations"),
    ("onnx-ir", "onnx", "nets with quantized activations"),
    ("onnxruntime", "onnx", "running nets, and finding the ranges of their activations"),
    ("onnxscript", "onnx", "nets from PyTorch"),
    ("starlette", "serve", "`tersor serve`"),
    ("uvicorn", "serve", "`tersor serve`"),
    ("httptools", "serve", "`tersor serve`"),
    ("prometheus_client", "serve", "/metrics of `tersor serve`"),
    ("executorch", "mobile", "programs for phones (.pte)"),
    ("pillow", "images", "nets on folders of image files"),
    ("openvino", "", "running nets in OpenVINO, often faster on x86"),
    ("huggingface_hub", "", "models by Hugging Face id"),
)
"""Distribution, the extra of ours that brings it, what it is for."""
_MODULES = {"onnx-ir": "onnx_ir", "pillow": "PIL"}
"""What is imported, where it is not called as its distribution."""
_TRIED = "def read(path):\n    return open(path).read()\n"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `remedy` is a command or advice, empty where nothing is wrong."""

    topic: str
    state: State
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings; `is_healthy` unless something that is installed does not work.

    profile  the class of machines that this one belongs to; None where none fits
    roofs    what it can do at most, measured
    """

    findings: tuple[Finding, ...]
    profile: str | None
    roofs: Roofs

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is broken; absent extras are no fault."""
        return all(finding.state != "broken" for finding in self.findings)

    def to_object(self) -> dict[str, object]:
        """Return everything as plain values, ready for JSON."""
        return {
            "healthy": self.is_healthy,
            "profile": self.profile,
            "roofs": asdict(self.roofs),
            "findings": [asdict(finding) for finding in self.findings],
        }


def doctor() -> Diagnosis:
    """Look at Python, the kernels, the extras, measure the machine, let llama.cpp load a vocabulary: two seconds."""
    machine = processor()
    profile, roofs = profile_of(machine), measure_roofs(machine.physical)
    findings = [
        Finding("tersor", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} ({platform.python_implementation()})"),
        Finding("system", "ok", f"{platform.system()} {platform.machine()}"),
        Finding("cores", "ok", f"{_cores()} usable of {os.cpu_count()}"),
        Finding("memory", "ok", _memory()),
        Finding("processor", "ok", f"{machine.name}: {' '.join(machine.flags) or 'instruction sets unknown'}"),
        _profile(profile),
        Finding("roofs", "ok", _roofs(roofs, machine)),
        *_graphics(),
        _kernels(),
        *(_package(*row) for row in PACKAGES),
        _engine(),
    ]
    return Diagnosis(tuple(findings), None if profile is None else profile.name, roofs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """The memory of the machine or of its container, and what of it is free, where the system tells."""
    total, free = machine_bytes(), available_bytes()
    if total is None or free is None:
        return "unknown on this system"
    return f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"


def _profile(found: Profile | None) -> Finding:
    """The class of machines, and what runs fast on it."""
    if found is None:
        return Finding("profile", "absent", "none of ours fits; `tersor estimate --list` shows them")
    fast = [f"{name} {' '.join(row.formats)}" for name, row in found.engines.items() if row.formats]
    notes = "".join(f"; {note}" for note in found.notes)
    return Finding("profile", "ok", f"{found.name} ({found.title}): fast are {', '.join(fast) or 'no formats'}{notes}")


def _roofs(found: Roofs, machine: Processor) -> str:
    parts = [f"reads {found.read_bytes_per_s / 1e9:.1f} GB/s", f"float32 {found.float_flops / 1e9:.0f} GFLOP/s"]
    parts.append("no int8 dot products" if found.byte_ops is None else f"int8 {found.byte_ops / 1e9:.0f} GOP/s")
    if found.matrix_ops is not None:
        parts.append(f"int8 in its matrix unit {found.matrix_ops / 1e9:.0f} GOP/s")
    return f"{', '.join(parts)}, with {found.threads} of {machine.cores} cores, by {found.method}"


def _graphics() -> list[Finding]:
    """The GPUs that the driver tells of; none is no fault."""
    findings = []
    for one in graphics():
        found = profile_of_graphics(one)
        like = "no profile of ours fits" if found is None else f"profile {found.name}"
        capability = ".".join(map(str, one.capability))
        text = f"{one.name}, {one.memory_bytes / 2**30:.1f} GiB, compute capability {capability}; {like}"
        findings.append(Finding("gpu", "ok", text))
    return findings


def _kernels() -> Finding:
    try:
        module = codec.native()
    except TersorError as error:
        return Finding("kernels", "broken", str(error))
    if module is not None:
        levels = getattr(module, "isa_levels", None)
        more = f"; this machine has {', '.join(levels())}" if levels is not None else ""
        return Finding("kernels", "ok", f"{codec.backend()}, {len(module.formats())} formats{more}")
    remedy = "" if os.environ.get("TERSOR_KERNELS") == "reference" else "pip install --force-reinstall tersor"
    return Finding("kernels", "absent", codec.backend(), remedy)


def _package(name: str, extra: str, purpose: str) -> Finding:
    topic = f"{name} [{extra}]" if extra else name
    if importlib.util.find_spec(_MODULES.get(name, name)) is None:
        remedy = f"pip install '{f'tersor[{extra}]' if extra else name}'"
        return Finding(topic, "absent", f"not installed; needed for {purpose}", remedy)
    try:
        return Finding(topic, "ok", version(name))
    except PackageNotFoundError:
        return Finding(topic, "ok", "present, version unknown")


def _engine() -> Finding:
    """Start llama.cpp in its child process, on the vocabulary of the embedded model."""
    model = load(reference_model.PATH)
    metadata = {"general.architecture": MetadataEntry(model.architecture, "str"), **model.metadata}
    if model.tokenizer is not None:
        metadata |= model.tokenizer.metadata()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            write_gguf(path, metadata, (), ())
            with LlamaCpp(path, vocabulary_only=True, timeout_s=60) as engine:
                found, name = engine.detokenize(engine.tokenize(_TRIED)), engine.version()
    except MissingError as error:
        return Finding("llama.cpp", "absent", "not installed; nothing can be run", str(error).rpartition(": ")[2])
    except EngineError as error:
        return Finding("llama.cpp", "broken", str(error), f"pip install 'xllamacpp=={SUPPORTED}'")
    if found != _TRIED:
        return Finding("llama.cpp", "broken", f"{name} gives {found!r} for {_TRIED!r}")
    is_tried = name.endswith(SUPPORTED)
    return Finding("llama.cpp", "ok", f"{name} starts and tokenizes" + ("" if is_tried else f"; {SUPPORTED} is tested"))
