"""A process killed at any moment leaves a whole file or none under the final name."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = 4


def begin(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.quantize_forever", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("parts", [1, 3])
def test_a_killed_run_leaves_a_whole_file_or_none(tmp_path: Path, parts: int) -> None:
    source, folder = tmp_path / "model.safetensors", tmp_path / "out"
    source.write_bytes(b"weights")
    folder.mkdir()
    chance = random.Random(parts)
    limit = [] if parts == 1 else ["6"]
    unfinished = 0
    for _ in range(KILLS):
        with begin(str(source), str(folder / "m.gguf"), *limit) as process:
            assert process.stdout is not None
            hashes = process.stdout.readline().split()
            assert len(hashes) == parts
            time.sleep(chance.random() * 0.15)
            process.send_signal(signal.SIGKILL)
        unfinished += any(path.name.endswith("-partial") for path in folder.iterdir())
        whole = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix == ".gguf"]
        for path in whole:
            assert hashlib.sha256(path.read_bytes()).hexdigest() in hashes, path.name
    assert unfinished, "no run was hit while it wrote: the test proves nothing"
