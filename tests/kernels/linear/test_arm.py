"""The kernels compiled for Arm, with and without its instruction for products of bytes, and run by an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[3] / "src" / "tersor" / "kernels" / "native"
SOURCE = Path(__file__).parent / "hashes.cpp"
COMMON = ["-std=gnu++17", "-O2", "-w", "-static", "-ffp-contract=off", f"-I{NATIVE}"]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def hashes(folder: Path, compiler: str, isa: str, options: list[str], *, runner: tuple[str, ...] = ()) -> str:
    """What the program prints."""
    program = folder / f"{compiler}-{isa}"
    named = [f"-DTERSOR_ISA={isa}", *options]
    subprocess.run([compiler, *COMMON, *named, str(SOURCE), "-o", str(program)], check=True)
    run = subprocess.run([*runner, str(program)], check=True, capture_output=True, text=True)
    return run.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed: apt install g++-aarch64-linux-gnu"
)
@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"{EMULATOR} is not installed: apt install qemu-user-static")
def test_arm_gives_the_same_bits(tmp_path: Path) -> None:
    here = hashes(tmp_path, "g++", "portable", ["-DTERSOR_LANES=4"])
    assert len(set(here.splitlines())) == 24
    emulated = (EMULATOR, "-cpu", "max")
    assert hashes(tmp_path, COMPILER, "portable", ["-DTERSOR_LANES=4"], runner=emulated) == here
    options = ["-DTERSOR_LANES=4", "-march=armv8.2-a+dotprod"]
    assert hashes(tmp_path, COMPILER, "dotprod", options, runner=emulated) == here
