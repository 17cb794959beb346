"""What goes into a file and its Card besides weights: metadata, versions, the machine in words."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tersor import __version__
from tersor.containers.mixtures import file_type
from tersor.core.metadata import MetadataEntry
from tersor.core.plan import Recipe
from tersor.files.hashing import written_name
from tersor.kernels import codec
from tersor.models.model import Model

try:
    import resource
except ImportError:  # Windows does not tell the peak this way
    resource = None  # type: ignore[assignment]

__all__ = ["SOURCE_HASHES", "artefact_metadata", "machine", "peak_memory_bytes", "source_hashes_entry", "versions"]

SOURCE_HASHES = "tersor.source.sha256"
_OWN_KEYS = ("general.alignment", "general.file_type", "general.quantization_version", "general.quantized_by")
_QUANTIZATION_VERSION = 2  # of ggml's block layouts


def artefact_metadata(model: Model, recipe: Recipe) -> dict[str, MetadataEntry]:
    """Return all keys of the GGUF, in file order; the source hashes are placeholders of their final length.

    The same model and recipe give the same keys: nothing here depends on time, place or machine.
    """
    inherited = {
        key: entry
        for key, entry in model.metadata.items()
        if key not in _OWN_KEYS and not key.startswith(("tersor.", "split."))
    }
    metadata = {
        "general.architecture": MetadataEntry(model.architecture, "str"),
        "general.type": MetadataEntry("model", "str"),
        "general.name": MetadataEntry(model.name, "str"),
        **inherited,
        "general.file_type": MetadataEntry(file_type(recipe.format).number, "u32"),
        "general.quantization_version": MetadataEntry(_QUANTIZATION_VERSION, "u32"),
        "general.quantized_by": MetadataEntry(f"tersor {__version__}", "str"),
    }
    if model.tokenizer is not None:
        metadata |= model.tokenizer.metadata()
    metadata["tersor.version"] = MetadataEntry(__version__, "str")
    metadata["tersor.recipe"] = MetadataEntry(json.dumps(asdict(recipe), sort_keys=True), "str")
    metadata[SOURCE_HASHES] = source_hashes_entry({written_name(path.name): "0" * 64 for path in model.files})
    return metadata


def source_hashes_entry(hashes: Mapping[str, str]) -> MetadataEntry:
    """Return the hashes of all source files as one JSON text."""
    return MetadataEntry(json.dumps(dict(sorted(hashes.items()))), "str")


def versions() -> dict[str, str]:
    """Return the versions of what shaped the bytes; of the kernels which run, without the path of a failed load."""
    found = {"tersor": __version__, "python": platform.python_version()}
    for package in ("numpy", "gguf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return {**found, "kernels": codec.backend().partition(":")[0]}


def machine() -> str:
    """Return system, processor kind and cores: no host, user or path."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def peak_memory_bytes() -> int | None:
    """Return the largest resident size of this process so far; None where the system does not tell.

    Linux counts into getrusage what the parent held before this program was loaded; its own peak stands in /proc.
    """
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
