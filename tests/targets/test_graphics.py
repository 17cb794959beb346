from __future__ import annotations

import os
from pathlib import Path

import pytest

from tersor.targets.graphics import Graphics, graphics

needs_programs = pytest.mark.skipif(os.name != "posix", reason="the program of the test is a shell script")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_without_the_program_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert graphics() == ()


@needs_programs
def test_every_line_that_can_be_read_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "NVIDIA H200, 9.0, 143771",
        "NVIDIA, with commas, 8.9, 24564",
        "nonsense",
        "NVIDIA X, 9.0, [N/A]",
        "a, b, c",
    ]
    script = "".join(f"echo '{line}'\n" for line in lines)
    install(tmp_path, monkeypatch, f'test "$1" = "--query-gpu=name,compute_cap,memory.total" || exit 3\n{script}')
    assert graphics() == (
        Graphics("NVIDIA H200", (9, 0), 143771 << 20),
        Graphics("NVIDIA, with commas", (8, 9), 24564 << 20),
    )


@needs_programs
@pytest.mark.parametrize("script", ["echo 'NVIDIA H200, 9.0, 143771'; exit 9", r"printf '\377\376'"])
def test_a_program_that_fails_or_talks_no_text_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    install(tmp_path, monkeypatch, script)
    assert graphics() == ()
