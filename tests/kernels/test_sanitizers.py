"""The native kernels, compiled with AddressSanitizer and UndefinedBehaviorSanitizer, over every kind of input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

nanobind = pytest.importorskip("nanobind", reason="nanobind is not installed: pip install nanobind")

NATIVE = Path(__file__).parents[2] / "src" / "tersor" / "kernels" / "native"
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize=float-divide-by-zero", "-fno-omit-frame-pointer"]
COMMON = ["-std=gnu++17", "-O1", "-g", "-fPIC", "-w"]
LEVELS = {
    "portable": ["-DTERSOR_LANES=4"],
    "avx2": ["-DTERSOR_LANES=8", "-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-DTERSOR_LANES=16", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mf16c"],
}
LINEAR_LEVELS = {
    **LEVELS,
    "avx512vnni": [*LEVELS["avx512"], "-mavx512vnni"],
    "amx": [*LEVELS["avx512"], "-mavx512vnni", "-mamx-tile", "-mamx-int8"],
}


def compiled(folder: Path, source: Path, name: str, options: list[str]) -> str:
    target = folder / f"{name}.o"
    subprocess.run(["g++", *COMMON, *options, "-c", str(source), "-o", str(target)], check=True)
    return str(target)


def build(folder: Path) -> Path:
    include = [sysconfig.get_paths()["include"], nanobind.include_dir()]
    root = Path(nanobind.include_dir()).parent
    flags = [f"-I{path}" for path in (*include, root / "ext" / "robin_map" / "include")]
    x86, exact = os.uname().machine == "x86_64", ["-ffp-contract=off"]
    objects = [
        compiled(folder, NATIVE / source, f"{source}-{level}", [*CHECKS, *exact, f"-DTERSOR_ISA={level}", *options])
        for source, levels in (("isa.cpp", LEVELS), ("linear.cpp", LINEAR_LEVELS))
        for level, options in levels.items()
        if x86 or level == "portable"
    ]
    module = [*CHECKS, *flags, *(["-DTERSOR_X86", "-DTERSOR_AMX"] if x86 else [])]
    objects.append(compiled(folder, NATIVE / "module.cpp", "module", module))
    objects.append(compiled(folder, root / "src" / "nb_combined.cpp", "nanobind", [*flags, "-DNDEBUG"]))
    library = folder / "_native.so"
    subprocess.run(["g++", "-shared", CHECKS[0], "-o", str(library), *objects, "-lpthread"], check=True)
    return library


def runtime(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_no_kernel_reads_or_writes_where_it_must_not(tmp_path: Path) -> None:
    library = build(tmp_path)
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = Path(__file__).parent / "exercise_native.py"
    run = subprocess.run(
        [sys.executable, str(script), str(library)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "runtime error" not in run.stderr, run.stderr[:2000]
    assert "portable done" in run.stdout
