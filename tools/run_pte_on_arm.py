"""Run a program of ExecuTorch as an AArch64 processor does, by emulation: its C++ runtime, neither Python nor torch.

    apt-get install g++-aarch64-linux-gnu qemu-user-static
    python -m pip download executorch==1.5.1 --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 -d wheels
    python tools/run_pte_on_arm.py --wheel wheels/executorch-1.5.1-….whl net.pte inputs.npz outputs.npz

The wheel for AArch64 brings the runtime, its kernels and XNNPACK as shared libraries with their headers; `run_pte.cpp`
is compiled against them. `inputs.npz` has float32 arrays, in the order of the program's inputs; `outputs.npz` gets
those of its outputs. An emulator says what is computed, never how fast.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["COMPILER", "EMULATOR", "build", "run"]

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
SYSROOT = Path("/usr/aarch64-linux-gnu")
PROCESSOR = "cortex-a76"
"""Has dot products of bytes, as phones since 2018 do; no products of matrices of bytes."""
LIBRARIES = ("", "_threadpool", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack")
TIMEOUT_S = 600
Float32 = npt.NDArray[np.float32]


def build(wheel: Path, folder: Path) -> Path:
    """Return the program that runs programs, compiled into `folder`, where the wheel is unpacked.

    RuntimeError where the compiler does not take it: its words.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            folder, [name for name in archive.namelist() if name.startswith(("executorch/lib", "executorch/include"))]
        )
    include, libraries, made = folder / "executorch/include", folder / "executorch/lib", folder / "run_pte"
    # Linked whole: kernels and back ends register themselves, nothing calls them by name.
    linked = [f"-lexecutorch{name}" for name in LIBRARIES]
    headers = [
        f"-I{include}",
        f"-I{include}/executorch/runtime/core/portable_type/c10",
        "-DC10_USING_CUSTOM_GENERATED_MACROS",
    ]
    source = Path(__file__).with_name("run_pte.cpp")
    words = [COMPILER, "-std=c++17", "-O1", "-w", *headers, str(source), "-o", str(made), f"-L{libraries}"]
    done = subprocess.run(
        [*words, "-Wl,--no-as-needed", *linked, f"-Wl,-rpath,{libraries}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return made


def run(program: Path, model: Path, inputs: Sequence[Float32], *, processor: str = PROCESSOR) -> list[Float32]:
    """Return the outputs of `model` on one set of inputs; RuntimeError with the words of the runtime where it fails."""
    with tempfile.TemporaryDirectory(prefix="tersor-arm-") as place:
        words: list[str] = []
        for number, values in enumerate(inputs):
            file = Path(place) / f"input{number}"
            np.ascontiguousarray(values, np.float32).tofile(file)
            words += [",".join(map(str, values.shape)), str(file)]
        outputs = Path(place) / "outputs"
        emulator = [EMULATOR, "-L", str(SYSROOT), "-cpu", processor]
        done = subprocess.run(
            [*emulator, str(program), str(model), str(outputs), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        shapes = [tuple(int(size) for size in line.split(",") if size) for line in done.stdout.splitlines()]
        flat = np.fromfile(outputs, np.float32)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel of executorch for AArch64")
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("outputs", type=Path)
    given: Any = parser.parse_args()
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not found: apt-get install g++-aarch64-linux-gnu qemu-user-static")
    with np.load(given.inputs, allow_pickle=False) as archive:
        inputs = [archive[name] for name in archive.files]
    with tempfile.TemporaryDirectory(prefix="tersor-arm-") as folder:
        made = run(build(given.wheel, Path(folder)), given.model, inputs)
    joined: dict[str, Any] = {f"output{number}": values for number, values in enumerate(made)}
    np.savez(given.outputs, allow_pickle=False, **joined)
    print(", ".join(str(values.shape) for values in made))


if __name__ == "__main__":
    main()
